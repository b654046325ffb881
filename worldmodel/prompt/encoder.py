"""The prompt encoder: a sentence becomes four vectors that tell a world what to look like."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

if TYPE_CHECKING:
    from tokenizers import Tokenizer

WEIGHTS = Path(__file__).parent / "weights" / "encoder.safetensors"
TOKENIZER = Path(__file__).parent / "weights" / "tokenizer.json"

VECTORS = 4  # road or first surface, grass or second surface, scene, gist
DIM = 64  # numbers in a vector, and in a word's row of the table
WIDTH = 128
LAYERS = 3
HEADS = 4
MAX_TOKENS = 48  # the rest of a longer prompt is not read
PAD = 0  # token id behind the end of a shorter text


class PromptEncoder(nn.Module):
    """Word pieces -> [batch, 4, 64] float32, every vector with mean 0 and variance 1.

    The words' rows are a projection of all-MiniLM-L6-v2's word embeddings (Apache-2.0, see NOTICE), stored as int8;
    a row counts by its direction only, so no scales are kept. Four learned queries sit in front of the words in a
    small transformer; what they have become after the last block is the prompt embedding. An empty prompt is legal.
    """

    table: Tensor

    def __init__(self, table: Tensor):
        """table: int8 [vocabulary, 64]."""
        super().__init__()
        self.register_buffer("table", table)
        self.words_in = nn.Linear(DIM, WIDTH)
        self.position = nn.Parameter(0.02 * torch.randn(MAX_TOKENS, WIDTH))
        self.queries = nn.Parameter(0.3 * torch.randn(VECTORS, WIDTH))
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.norm = nn.LayerNorm(WIDTH)
        self.out = nn.Linear(WIDTH, DIM)

    @classmethod
    def load(cls, path: Path = WEIGHTS) -> PromptEncoder:
        """The encoder that the shipped worlds were trained with, unless another file is named."""
        with safe_open(path, framework="pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        encoder = cls(state["table"])
        encoder.load_state_dict({name: t if t.dtype == torch.int8 else t.float() for name, t in state.items()})
        return encoder.eval()

    def save(self, path: Path) -> None:
        """Write the table as int8 and everything else as float16."""
        state = self.state_dict()
        save_file({name: t.contiguous() if t.dtype == torch.int8 else t.half() for name, t in state.items()}, path)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """ids, mask: int64 [batch, tokens], mask 1 for a word piece and 0 behind the end. Returns [batch, 4, 64]."""
        batch, tokens = ids.shape
        rows = self.table.index_select(0, ids.reshape(-1)).reshape(batch, tokens, DIM)
        return self.mix(same_size(rows.float()), mask)

    def mix(self, words: Tensor, mask: Tensor) -> Tensor:
        """words: [batch, tokens, 64], root mean square 1. mask: int64 [batch, tokens]. Returns [batch, 4, 64]."""
        batch, tokens, _ = words.shape
        x = self.words_in(words) + self.position[:tokens]
        x = torch.cat([self.queries.expand(batch, VECTORS, WIDTH), x], dim=1)
        seen = torch.cat([mask.new_ones(batch, VECTORS), mask], dim=1)
        bias = (seen.float() - 1)[:, None, None, :] * 1e4  # 0 where there is something to attend to
        for block in self.blocks:
            x = block(x, bias)
        return nn.functional.layer_norm(self.out(self.norm(x[:, :VECTORS])).float(), (DIM,))

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> Tensor:
        """Prompt embeddings of texts: [len(prompts), 4, 64] float32. Needs the package `tokenizers`."""
        return self.encode_ids(*tokenise(load_tokenizer(), prompts))

    @torch.no_grad()
    def encode_ids(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Prompt embeddings of texts that are already word pieces: int64 [n, tokens] each -> [n, 4, 64] float32."""
        return self.eval()(ids, mask)

    def to_onnx(self, path: Path) -> None:
        """Write the graph `ids, mask -> prompt`, batch and tokens free; table int8, other weights float16."""
        ids, mask = torch.zeros(2, 7, dtype=torch.int64), torch.ones(2, 7, dtype=torch.int64)
        batch, tokens = torch.export.Dim("batch"), torch.export.Dim("tokens", max=MAX_TOKENS)
        torch.onnx.export(
            self.eval(),
            (ids, mask),
            str(path),
            input_names=["ids", "mask"],
            output_names=["prompt"],
            dynamic_shapes=({0: batch, 1: tokens}, {0: batch, 1: tokens}),
            opset_version=18,
            external_data=False,
            dynamo=True,
            verbose=False,
        )
        slim(path)


class Block(nn.Module):
    """Pre-norm transformer block; attention is spelt out, so that every ONNX runtime takes it."""

    def __init__(self) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(WIDTH)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.attention_out = nn.Linear(WIDTH, WIDTH)
        self.norm_mlp = nn.LayerNorm(WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 3 * WIDTH), nn.GELU(), nn.Linear(3 * WIDTH, WIDTH))
        self.dropout = nn.Dropout(0.05)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """x: [batch, tokens, width]. bias: [batch, 1, 1, tokens], very negative where nothing is to be read."""
        batch, tokens, _ = x.shape
        qkv = self.qkv(self.norm_attention(x)).reshape(batch, tokens, 3, HEADS, WIDTH // HEADS)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # [batch, heads, tokens, head_dim]
        weight = (query @ key.transpose(-1, -2) * (WIDTH // HEADS) ** -0.5 + bias).softmax(-1)
        attended = (weight @ value).transpose(1, 2).reshape(batch, tokens, WIDTH)
        x = x + self.dropout(self.attention_out(attended))
        return x + self.dropout(self.mlp(self.norm_mlp(x)))


def same_size(rows: Tensor) -> Tensor:
    """Scale every row to root mean square 1: [..., dim]."""
    return rows * (rows.square().mean(-1, keepdim=True) + 1e-6).rsqrt()


@functools.cache
def load_tokenizer() -> Tokenizer:
    """The tokenizer of the shipped encoder: cuts texts after MAX_TOKENS word pieces, adds no special tokens."""
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(TOKENIZER))


def tokenise(tokenizer: Tokenizer, prompts: list[str]) -> tuple[Tensor, Tensor]:
    """Word pieces of texts and their mask, int64 [len(prompts), tokens] each, at least one token wide."""
    pieces = [encoding.ids for encoding in tokenizer.encode_batch(prompts)]
    width = max([1, *map(len, pieces)])
    ids = torch.tensor([p + [PAD] * (width - len(p)) for p in pieces], dtype=torch.int64)
    mask = torch.tensor([[1] * len(p) + [0] * (width - len(p)) for p in pieces], dtype=torch.int64)
    return ids, mask


def slim(path: Path) -> None:
    """Store a graph's large float32 weights as float16, each with a cast back (folded when a runtime loads it), and
    nothing of where its sources lie, which would make other bytes of it in every folder.
    """
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    model = onnx.load(str(path))
    casts = []
    for tensor in list(model.graph.initializer):
        if tensor.data_type != TensorProto.FLOAT or np.prod(tensor.dims) < 256:
            continue
        half = numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name + ".half")
        casts.append(helper.make_node("Cast", [half.name], [tensor.name], to=TensorProto.FLOAT))
        model.graph.initializer.remove(tensor)
        model.graph.initializer.append(half)
    for cast in reversed(casts):
        model.graph.node.insert(0, cast)
    for node in model.graph.node:
        del node.metadata_props[:]
    del model.graph.value_info[:]
    onnx.save(model, str(path))
