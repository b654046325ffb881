"""What a prompt encoder understands: `python -m worldmodel.prompt.evaluate [ENCODER]` prints docs/prompts.md's tables.

The read-out that turns vectors back into colours is fitted anew here, on training texts alone, as a linear map.
"""

from __future__ import annotations

import io
import time
import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from worldmodel.prompt.encoder import TOKENIZER, PromptEncoder
from worldmodel.prompt.grammar import Lab
from worldmodel.train.envs import captions, vizdoom

TEXTS = 2000  # per row of the table
SAME_COLOUR = 12.0  # CIE76 distance up to which `worldloop eval` counts a colour as the one that was asked for


def colour_cases(
    rng: np.random.Generator, names: Iterable[str], split: captions.Split
) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Captions with both colours drawn from `names`: texts, road Lab [n, 3], grass Lab [n, 3]."""
    pool, labs = list(names), {name: captions.lab(rgb) for name, rgb in captions.all_names().items()}
    texts, roads, grasses = [], [], []
    for _ in range(TEXTS):
        road, grass = (str(name) for name in rng.choice(pool, size=2))
        texts.append(captions.caption(rng, road, grass, split))
        roads.append(labs[road])
        grasses.append(labs[grass])
    return texts, np.array(roads), np.array(grasses)


def scene_cases(rng: np.random.Generator) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Prompts as `worldloop eval` asks a world for: one name or both held out, the two colours well apart."""
    scenes = [captions.scene_colours(rng, "test") for _ in range(TEXTS)]
    texts = [captions.caption(rng, scene[0], scene[2], "test") for scene in scenes]
    roads, grasses = (captions.lab(np.array([scene[at] for scene in scenes])) for at in (1, 3))
    return texts, roads, grasses


class LinearReadout:
    """Least squares from one vector to Lab."""

    def __init__(self, vectors: Tensor, labs: Lab):
        x = with_one(vectors)
        self.weight = np.linalg.solve(x.T @ x + 1e-4 * len(x) * np.eye(x.shape[1]), x.T @ labs)

    def __call__(self, vectors: Tensor) -> Lab:
        return with_one(vectors) @ self.weight


def with_one(vectors: Tensor) -> np.ndarray:
    """[n, 64] -> float64 [n, 65]"""
    return np.concatenate([vectors.numpy().astype(np.float64), np.ones((len(vectors), 1))], axis=1)


def ciede2000(first: Lab, second: Lab) -> np.ndarray:
    """Colour distance CIEDE2000 of Lab arrays [n, 3] (Sharma, Wu, Dalal 2005)."""
    l1, a1, b1 = first.T
    l2, a2, b2 = second.T
    mean_chroma = (np.hypot(a1, b1) + np.hypot(a2, b2)) / 2
    stretch = 1.5 - 0.5 * np.sqrt(mean_chroma**7 / (mean_chroma**7 + 25.0**7))
    c1, c2 = np.hypot(a1 * stretch, b1), np.hypot(a2 * stretch, b2)
    h1, h2 = np.arctan2(b1, a1 * stretch) % (2 * np.pi), np.arctan2(b2, a2 * stretch) % (2 * np.pi)
    turn = (h2 - h1 + np.pi) % (2 * np.pi) - np.pi
    turn = np.where(c1 * c2 == 0, 0, turn)
    hue = np.where(c1 * c2 == 0, h1 + h2, h1 + turn / 2) % (2 * np.pi)
    light, chroma = (l1 + l2) / 2, (c1 + c2) / 2
    t = (
        1 - 0.17 * np.cos(hue - np.pi / 6) + 0.24 * np.cos(2 * hue)
        + 0.32 * np.cos(3 * hue + np.radians(6)) - 0.20 * np.cos(4 * hue - np.radians(63))
    )  # fmt: skip
    s_l = 1 + 0.015 * (light - 50) ** 2 / np.sqrt(20 + (light - 50) ** 2)
    s_c, s_h = 1 + 0.045 * chroma, 1 + 0.015 * chroma * t
    spread = np.radians(30) * np.exp(-(((np.degrees(hue) - 275) / 25) ** 2))
    twist = -2 * np.sqrt(chroma**7 / (chroma**7 + 25.0**7)) * np.sin(2 * spread)
    d_l, d_c, d_h = (l2 - l1) / s_l, (c2 - c1) / s_c, 2 * np.sqrt(c1 * c2) * np.sin(turn / 2) / s_h
    return np.sqrt(d_l**2 + d_c**2 + d_h**2 + twist * d_c * d_h)


def evaluate(encoder: PromptEncoder) -> dict[str, dict[str, float]]:
    """Rows of the table: group of texts -> figures.

    CIE distances; "both" is the share of texts both of whose colours are right, "bound" that nearer than swapped.
    """
    rng = np.random.default_rng(7)
    held_out = list(captions.held_out_names())
    train_names = list(captions.train_names())
    texts, roads, grasses = colour_cases(rng, train_names, "train")
    vectors = encode_all(encoder, texts)
    read = LinearReadout(vectors[:, 0], roads), LinearReadout(vectors[:, 1], grasses)
    groups = {
        "names and templates of training": colour_cases(rng, train_names, "train"),
        "names of training, held-out templates": colour_cases(rng, train_names, "test"),
        "held-out compositions, held-out templates": colour_cases(rng, [n for n in held_out if " " in n], "test"),
        "held-out plain names, held-out templates": colour_cases(rng, [n for n in held_out if " " not in n], "test"),
        "prompts of `worldloop eval`": scene_cases(rng),
    }
    rows = {}
    for title, (texts, roads, grasses) in groups.items():
        vectors = encode_all(encoder, texts)
        told = read[0](vectors[:, 0]), read[1](vectors[:, 1])
        row = {}
        for part, labs, wanted in (("road", told[0], roads), ("grass", told[1], grasses)):
            for measure, distance in (("76", np.linalg.norm(labs - wanted, axis=1)), ("00", ciede2000(labs, wanted))):
                row[f"{part}_{measure}_median"] = float(np.median(distance))
                row[f"{part}_{measure}_p90"] = float(np.percentile(distance, 90))
        far = [np.linalg.norm(labs - wanted, axis=1) for labs, wanted in zip(told, (roads, grasses), strict=True)]
        row["both"] = float((np.maximum(*far) <= SAME_COLOUR).mean())
        straight = np.linalg.norm(told[0] - roads, axis=1) + np.linalg.norm(told[1] - grasses, axis=1)
        swapped = np.linalg.norm(told[0] - grasses, axis=1) + np.linalg.norm(told[1] - roads, axis=1)
        apart = np.linalg.norm(roads - grasses, axis=1) >= 30
        row["bound"] = float((straight < swapped)[apart].mean())
        rows[title] = row
    return rows


def doom_accuracy(encoder: PromptEncoder) -> float:
    """Share of held-out Doom texts whose scene vector is nearest to the right scene's mean over its training texts."""
    means = torch.stack([encode_all(encoder, list(t))[:, 2].mean(0) for t in vizdoom.SCENE_CAPTIONS.values()])
    right = []
    for at, scene in enumerate(vizdoom.SCENE_CAPTIONS):
        vectors = encode_all(encoder, list(vizdoom.HELD_OUT_CAPTIONS[scene]))[:, 2]
        right.append(torch.cdist(vectors, means).argmin(1) == at)
    return float(torch.cat(right).float().mean())


def encode_all(encoder: PromptEncoder, texts: list[str]) -> Tensor:
    """As `encode`, in portions of like length: [n, 4, 64]."""
    order = sorted(range(len(texts)), key=lambda at: len(texts[at]))
    found = torch.empty(len(texts), 4, 64)
    for start in range(0, len(order), 128):
        batch = order[start : start + 128]
        found[batch] = encoder.encode([texts[at] for at in batch])
    return found


def onnx_cost(encoder: PromptEncoder, folder: Path) -> tuple[float, float]:
    """(megabytes that graph and tokenizer add to a world file, median milliseconds for one prompt without torch)."""
    import onnxruntime
    from tokenizers import Tokenizer

    encoder.to_onnx(folder / "prompt.onnx")
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as file:
        file.write(folder / "prompt.onnx", "prompt.onnx")
        file.write(TOKENIZER, "tokenizer.json")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(folder / "prompt.onnx"), options, providers=["CPUExecutionProvider"])
    tokenizer = Tokenizer.from_file(str(TOKENIZER))
    took = []
    for _ in range(200):
        began = time.perf_counter()
        ids = np.array([tokenizer.encode("drive on a dark brown road through turquoise fields").ids], np.int64)
        session.run(None, {"ids": ids, "mask": np.ones_like(ids)})
        took.append(1000 * (time.perf_counter() - began))
    return len(packed.getvalue()) / 1e6, float(np.median(took))


def table(rows: dict[str, dict[str, float]]) -> str:
    """The rows as Markdown: median / 90th percentile of each distance."""
    heads = ("texts", "road CIE76", "road CIEDE2000", "grass CIE76", "grass CIEDE2000", "both within 12", "bound right")
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for title, row in rows.items():
        columns = [f"{part}_{measure}" for part in ("road", "grass") for measure in ("76", "00")]
        cells = [f"{row[f'{column}_median']:.1f} / {row[f'{column}_p90']:.1f}" for column in columns]
        lines.append(f"| {title} | {' | '.join(cells)} | {100 * row['both']:.0f} % | {100 * row['bound']:.1f} % |")
    return "\n".join(lines)


def main() -> None:
    """Print the table and the cost, of the shipped encoder unless another file is named."""
    import sys
    import tempfile

    encoder = PromptEncoder.load(*map(Path, sys.argv[1:2]))
    print(table(evaluate(encoder)))
    print(f"\nDoom scenes from held-out texts: {100 * doom_accuracy(encoder):.0f} % right")
    with tempfile.TemporaryDirectory() as folder:
        megabytes, milliseconds = onnx_cost(encoder, Path(folder))
    print(f"In a world file: {megabytes:.2f} MB; one prompt: {milliseconds:.1f} ms (onnxruntime, one thread)")


if __name__ == "__main__":
    main()
