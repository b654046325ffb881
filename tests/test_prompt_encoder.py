"""What a player may expect of the words that describe a world."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from worldmodel.errors import CheckpointError
from worldmodel.prompt.encoder import MAX_TOKENS, TOKENIZER, WEIGHTS, PromptEncoder, load_tokenizer, tokenise
from worldmodel.prompt.teach import teach
from worldmodel.train.envs import captions

ROAD, GRASS, SCENE = 0, 1, 2


@pytest.fixture(scope="module")
def encoder() -> PromptEncoder:
    return PromptEncoder.load()


def distance(encoder: PromptEncoder, first: str, second: str, vector: int) -> float:
    one, two = encoder.encode([first, second])[:, vector]
    return float((one - two).square().mean())


def test_every_vector_has_variance_one(encoder: PromptEncoder) -> None:
    prompt = encoder.encode(["a brown road through green fields", "x", ""])
    assert prompt.shape == (3, 4, 64) and prompt.dtype == torch.float32
    assert torch.allclose(prompt.mean(-1), torch.zeros(3, 4), atol=1e-4)
    assert torch.allclose(prompt.var(-1, unbiased=False), torch.ones(3, 4), atol=1e-2)


@pytest.mark.parametrize(
    "said_otherwise",
    [
        "yellow meadows crossed by a purple highway",
        "Yellow grass, and in the middle of it a PURPLE street",
        "all the land is yellow, but the tarmac is purple",
        "purple asphalt runs past yellow pastures",
    ],
)
def test_another_order_means_the_same_and_swapped_colours_do_not(encoder: PromptEncoder, said_otherwise: str) -> None:
    said, swapped = "a purple road through yellow fields", "a yellow road through purple fields"
    for vector in (ROAD, GRASS):
        assert 4 * distance(encoder, said, said_otherwise, vector) < distance(encoder, said, swapped, vector)


def test_a_text_that_names_one_colour_leaves_the_other_where_silence_leaves_it(encoder: PromptEncoder) -> None:
    named = distance(encoder, "a road through fields", "a blue road through fields", ROAD)
    assert 10 * distance(encoder, "a road through fields", "a blue road through fields", GRASS) < named


def test_case_and_padding_do_not_matter(encoder: PromptEncoder) -> None:
    texts = ["Dark Teal ROAD, beige fields", "dark teal road, beige fields", "a longer text with a brown road in it"]
    together = encoder.encode(texts)
    assert torch.equal(together[0], together[1])
    assert torch.allclose(together[1], encoder.encode(texts[1:2])[0], atol=1e-4)


def test_what_stands_behind_the_longest_text_is_not_read(encoder: PromptEncoder) -> None:
    long = "road " * MAX_TOKENS
    assert torch.equal(encoder.encode([long]), encoder.encode([long + "and purple fields"]))


def test_the_player_splits_a_prompt_as_training_did() -> None:
    from tokenizers import Tokenizer

    from runtime.prompt import Tokenizer as PlayersTokenizer

    read = PlayersTokenizer(Tokenizer.from_file(str(TOKENIZER)))
    for text in ("A dark-teal ROAD, Café!", "road " * 100):
        for played, trained in zip(read(text), tokenise(load_tokenizer(), [text]), strict=True):
            assert played.tolist() == trained.tolist()


def test_ids_alone_need_no_tokenizer(encoder: PromptEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tokenizers", None)
    ids = torch.tensor([[5, 6, 7]])
    assert encoder.encode_ids(ids, torch.ones_like(ids)).shape == (1, 4, 64)


def test_the_graph_equals_torch_and_fits_into_a_world_file(encoder: PromptEncoder, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    encoder.to_onnx(tmp_path / "prompt.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "prompt.onnx"), providers=["CPUExecutionProvider"])
    random = torch.Generator().manual_seed(0)
    for batch, tokens in ((1, 1), (1, 11), (3, MAX_TOKENS)):
        ids = torch.randint(len(encoder.table), (batch, tokens), generator=random)
        mask = (torch.rand((batch, tokens), generator=random) < 0.7).long()
        (graph,) = session.run(None, {"ids": ids.numpy(), "mask": mask.numpy()})
        assert np.abs(graph - encoder.encode_ids(ids, mask).numpy()).max() < 2e-3
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as file:
        file.write(tmp_path / "prompt.onnx")
        file.write(TOKENIZER)
    assert len(packed.getvalue()) <= 3_200_000


@pytest.mark.parametrize("name", ["turquoise", "salmon", "olive", "dark magenta", "light teal", "pastel purple"])
def test_a_name_that_no_world_was_trained_on_lies_where_its_colour_does(encoder: PromptEncoder, name: str) -> None:
    wanted, others = captions.all_names()[name], captions.train_names()
    near, far = sorted(others, key=lambda other: captions.delta_e(wanted, others[other]))[:: len(others) - 1]
    for vector, text in ((ROAD, "a {} road"), (GRASS, "{} fields")):
        said = text.format(name)
        assert 4 * distance(encoder, said, text.format(near), vector) < distance(
            encoder, said, text.format(far), vector
        )


def test_teaching_goes_on_from_an_encoder_and_leaves_what_it_tells_in_place(
    encoder: PromptEncoder, tmp_path: Path
) -> None:
    figures = teach(WEIGHTS, tmp_path, 0.05, 0)
    taught = PromptEncoder.load(tmp_path / "encoder.safetensors")
    text = ["a dark brown road through light green fields"]
    assert figures["step"] > 0
    assert torch.nn.functional.cosine_similarity(taught.encode(text), encoder.encode(text), dim=-1).min() > 0.9
    with pytest.raises(CheckpointError, match="does not exist"):
        teach(tmp_path / "nothing.safetensors", tmp_path, 0.05, 0)
