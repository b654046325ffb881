"""Open somebody else's checkpoint: find the weights in it, under plain names, without running or allocating anything.

A checkpoint is a safetensors file, a folder of them, or a torch zip (`.pt`, `.pth`), which is read with the loader that
executes nothing and is mapped, not loaded. What projects wrap around their weights is taken off here; `Found` remembers
it, because it tells projects apart whose weights have the same names and shapes.
"""

from __future__ import annotations

import json
import pickle
import re
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from worldmodel.errors import CheckpointError
from worldmodel.families.tensor_file import LARGEST_HEADER, LARGEST_TENSOR, read_header

PARTS = ("generator_ema", "generator", "model", "state_dict", "generator_lora")  # in the order of preference
INFIXES = ("_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "_orig_mod.")
PREFIXES = ("module.", "generator.", "base_model.model.", "model.diffusion_model.", "diffusion_model.", "model.")


@dataclass(frozen=True)
class Found:
    """How the weights were wrapped."""

    file: str  # its name without the ending
    part: str = ""  # the sub-dictionary they were in, empty: none
    others: tuple[str, ...] = ()  # what was beside it
    infixes: tuple[str, ...] = ()
    prefix: str = ""

    @staticmethod
    def from_json(raw: Mapping[str, Any]) -> Found:
        """What `vars` of one gave, after a way through JSON."""
        lists = {name: tuple(raw.get(name, ())) for name in ("others", "infixes")}
        return Found(str(raw.get("file", "")), str(raw.get("part", "")), prefix=str(raw.get("prefix", "")), **lists)


@dataclass(frozen=True)
class Checkpoint:
    """Weights under plain names, read when they are asked for."""

    path: Path
    found: Found
    shapes: dict[str, tuple[int, ...]]
    bytes: int
    config: dict[str, Any]  # the JSON beside the weights, or empty
    readers: dict[str, Callable[[], Tensor]] = field(repr=False)

    def read(self) -> dict[str, Tensor]:
        return {name: reader() for name, reader in self.readers.items()}


def open_checkpoint(path: Path, part: str | None = None) -> Checkpoint:
    """Find the weights of a checkpoint. part: the sub-dictionary to take, by default the best there is."""
    if not path.exists():
        raise CheckpointError(f"no checkpoint at {path}")
    if path.is_dir() or path.suffix == ".safetensors":
        raw, others = _safetensors(path)
        raw, chosen, others = _choose_prefix(raw, part, str(path))
    else:
        raw, chosen, others = _torch_zip(path, part)
    names, infixes, prefix = plain_names(raw, str(path))
    tensors = {names[name]: entry for name, entry in raw.items()}
    return Checkpoint(
        path=path,
        found=Found(path.stem, chosen, others, infixes, prefix),
        shapes={name: entry.shape for name, entry in tensors.items()},
        bytes=sum(entry.bytes for entry in tensors.values()),
        config=_config(path),
        readers={name: entry.read for name, entry in tensors.items()},
    )


def plain_names(names: Iterable[str], where: str) -> tuple[dict[str, str], tuple[str, ...], str]:
    """Every name without wrappers, in Wan's own naming; and the infixes and the prefix that were taken off."""
    plain = {name: name for name in names}
    infixes = tuple(infix for infix in INFIXES if any(infix in name for name in plain))
    for infix in infixes:
        plain = {name: short.replace(infix, "") for name, short in plain.items()}
    taken = ""
    while plain and (prefix := next((p for p in PREFIXES if all(s.startswith(p) for s in plain.values())), "")):
        plain = {name: short.removeprefix(prefix) for name, short in plain.items()}
        taken += prefix
    if any(re.match(r"blocks\.0\.attn1\.", short) for short in plain.values()):
        plain = {name: from_diffusers(short) for name, short in plain.items()}
    if len(set(plain.values())) != len(plain):
        raise CheckpointError(f"{where}: two tensors have the same name once wrappers are taken off")
    return plain, infixes, taken


DIFFUSERS = [  # Diffusers' name, Wan's own
    (r"condition_embedder\.text_embedder\.linear_(\d)\.", lambda m: f"text_embedding.{2 * int(m[1]) - 2}."),
    (r"condition_embedder\.time_embedder\.linear_(\d)\.", lambda m: f"time_embedding.{2 * int(m[1]) - 2}."),
    (r"condition_embedder\.time_proj\.", lambda m: "time_projection.1."),
    (r"condition_embedder\.image_embedder\.norm1\.", lambda m: "img_emb.proj.0."),
    (r"condition_embedder\.image_embedder\.ff\.net\.0\.proj\.", lambda m: "img_emb.proj.1."),
    (r"condition_embedder\.image_embedder\.ff\.net\.2\.", lambda m: "img_emb.proj.3."),
    (r"condition_embedder\.image_embedder\.norm2\.", lambda m: "img_emb.proj.4."),
    (r"(blocks\.\d+\.)attn1\.", lambda m: f"{m[1]}self_attn."),
    (r"(blocks\.\d+\.)attn2\.add_([kv])_proj\.", lambda m: f"{m[1]}cross_attn.{m[2]}_img."),
    (r"(blocks\.\d+\.)attn2\.norm_added_k\.", lambda m: f"{m[1]}cross_attn.norm_k_img."),
    (r"(blocks\.\d+\.)attn2\.", lambda m: f"{m[1]}cross_attn."),
    (r"(blocks\.\d+\.)ffn\.net\.0\.proj\.", lambda m: f"{m[1]}ffn.0."),
    (r"(blocks\.\d+\.)ffn\.net\.2\.", lambda m: f"{m[1]}ffn.2."),
    (r"(blocks\.\d+\.)norm2\.", lambda m: f"{m[1]}norm3."),
    (r"(blocks\.\d+\.)scale_shift_table$", lambda m: f"{m[1]}modulation"),
    (r"^scale_shift_table$", lambda m: "head.modulation"),
    (r"^proj_out\.", lambda m: "head.head."),
    (r"(self|cross)_attn\.to_out\.0\.", lambda m: f"{m[1]}_attn.o."),
    (r"(self|cross)_attn\.to_([qkv])\.", lambda m: f"{m[1]}_attn.{m[2]}."),
]  # fmt: skip


def from_diffusers(name: str) -> str:
    """A tensor's name in Wan's own naming."""
    for pattern, replacement in DIFFUSERS:
        name = re.sub(pattern, replacement, name)
    return name


def merge_lora(
    weights: Mapping[str, Tensor], lora: Mapping[str, Tensor], alpha: float | None = None
) -> dict[str, Tensor]:
    """W + (alpha / rank) · B · A, computed in float32. alpha: by default the rank, as LongLive's are."""
    merged, used = dict(weights), set()
    for name in lora:
        found = re.fullmatch(r"(.+)\.lora_A(?:\.default)?\.weight", name)
        if not found:
            continue
        target, other = f"{found[1]}.weight", name.replace(".lora_A", ".lora_B")
        if target not in weights or other not in lora:
            raise CheckpointError(f"the LoRA's '{name}' has no {'weight' if other in lora else 'lora_B'} to go with it")
        down, up, weight = lora[name].float(), lora[other].float(), weights[target]
        if (up.shape[0], down.shape[1]) != tuple(weight.shape) or up.shape[1] != down.shape[0]:
            raise CheckpointError(
                f"the LoRA's '{found[1]}' is {list(up.shape)} · {list(down.shape)}, "
                f"expected a product of {list(weight.shape)}"
            )
        scale = (alpha or down.shape[0]) / down.shape[0]
        merged[target] = (weight.float() + scale * (up @ down)).to(weight.dtype)
        used |= {name, other}
    left = sorted(set(lora) - used)
    if left or not used:
        raise CheckpointError(f"not a LoRA in PEFT's naming: {', '.join(left[:4]) or 'it is empty'}")
    return merged


def convert(checkpoint: Checkpoint, to: Path) -> None:
    """Write the weights, under their plain names, as a safetensors file."""
    unfinished = to.with_name(to.name + ".part")
    save_file({name: tensor.contiguous() for name, tensor in checkpoint.read().items()}, unfinished)
    unfinished.replace(to)


@dataclass(frozen=True)
class _Stored:
    """A tensor that has been found and not been read."""

    shape: tuple[int, ...]
    bytes: int
    read: Callable[[], Tensor]


def _safetensors(path: Path) -> tuple[dict[str, _Stored], tuple[str, ...]]:
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if not files:
        raise CheckpointError(f"{path}: no safetensors file in this folder")
    found: dict[str, _Stored] = {}
    for file in files:
        for name, entry in read_header(file).items():
            if name in found:
                raise CheckpointError(f"{path}: '{name}' is in two of its files")
            found[name] = _Stored(entry.shape, entry.bytes, _reader(file, name))
    return found, ()


def _reader(file: Path, name: str) -> Callable[[], Tensor]:
    def read() -> Tensor:
        with safe_open(file, framework="pt") as opened:
            tensor: Tensor = opened.get_tensor(name)
            return tensor

    return read


def _choose_prefix(
    raw: dict[str, _Stored], part: str | None, where: str
) -> tuple[dict[str, _Stored], str, tuple[str, ...]]:
    """In a flat file the parts are the first words of the names; they only count if there are several."""
    first_words = {name.split(".")[0] for name in raw}
    present = [name for name in PARTS if name in first_words and name != "model"]
    if part is None and (not present or len(first_words) == 1):
        return raw, "", ()
    chosen = _best(present, part, where)
    kept = {name.removeprefix(f"{chosen}."): entry for name, entry in raw.items() if name.startswith(f"{chosen}.")}
    return kept, chosen, tuple(sorted(first_words - {chosen}))


def _best(present: list[str], part: str | None, where: str) -> str:
    if part is not None and part not in present:
        raise CheckpointError(f"{where}: has no part '{part}'; it has: {', '.join(present) or 'none'}")
    return part or present[0]


def _torch_zip(path: Path, part: str | None) -> tuple[dict[str, _Stored], str, tuple[str, ...]]:
    _check_zip(path)
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)|Unsupported (?:class|global)[: ]+([\w.]+)", str(error))
        what = f" ({named[1] or named[2]})" if named else ""
        raise CheckpointError(
            f"{path}: its pickle wants to run code{what}: refused, nothing was executed; ask for a safetensors file"
        ) from error
    except (RuntimeError, ValueError, EOFError, KeyError, AttributeError, TypeError, OSError) as error:
        raise CheckpointError(f"{path}: cannot be read: {str(error).splitlines()[0]}") from error
    if not isinstance(loaded, dict):
        raise CheckpointError(f"{path}: holds a {type(loaded).__name__}, expected a dictionary of tensors")
    inner = {str(name): value for name, value in loaded.items() if isinstance(value, dict)}
    chosen = ""
    others: tuple[str, ...] = ()
    if inner and not any(isinstance(value, Tensor) for value in loaded.values()):
        present = [name for name in PARTS if name in inner] or list(inner)
        chosen = _best(present, part, str(path))
        others = tuple(str(name) for name in loaded if name != chosen)
        loaded = inner[chosen]
    elif part is not None:
        _best([], part, str(path))
    return {str(name): _mapped(path, str(name), tensor) for name, tensor in loaded.items()}, chosen, others


def _mapped(path: Path, name: str, tensor: object) -> _Stored:
    if not isinstance(tensor, Tensor) or tensor.layout != torch.strided:
        raise CheckpointError(f"{path}: '{name}' is a {type(tensor).__name__}, expected a dense tensor")
    needed = tensor.numel() * tensor.element_size()
    if needed > tensor.untyped_storage().nbytes() or tensor.numel() > LARGEST_TENSOR:
        raise CheckpointError(
            f"{path}: '{name}' claims shape {list(tensor.shape)}, {needed} bytes, more than the file holds"
        )
    return _Stored(tuple(tensor.shape), needed, lambda: tensor)


def _check_zip(path: Path) -> None:
    """The zip must be as torch writes it: stored, not packed, and no larger inside than outside."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise CheckpointError(
            f"{path}: not a torch zip file ({error}): damaged, or in the format of before 2020; "
            "ask for a safetensors file"
        ) from error
    packed = [entry.filename for entry in entries if entry.compress_type != zipfile.ZIP_STORED]
    if packed or sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise CheckpointError(
            f"{path}: holds more than its size ({', '.join(packed[:2]) or 'overlapping files'}): refused"
        )
    program = sum(entry.file_size for entry in entries if entry.filename.endswith("data.pkl"))
    if program > LARGEST_HEADER:
        raise CheckpointError(f"{path}: its list of tensors takes {program} bytes, the limit is {LARGEST_HEADER}")


def _config(path: Path) -> dict[str, Any]:
    """config.json, which Wan's and Diffusers' folders have beside the weights."""
    file = (path if path.is_dir() else path.parent) / "config.json"
    if not file.is_file() or file.stat().st_size > 1 << 20:
        return {}
    try:
        config = json.loads(file.read_text())
    except ValueError as error:
        raise CheckpointError(f"{file}: not valid JSON: {error}") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{file}: expected an object, found a {type(config).__name__}")
    return config
