"""Wan's text encoder gives exactly as many rows as the transformer was trained with, zero behind the text."""

import pytest
import torch

from worldmodel.errors import CheckpointError
from worldmodel.prompt.umt5 import Umt5, cleaned

transformers = pytest.importorskip("transformers")


@pytest.fixture
def folder(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {"<pad>": 0, "</s>": 1, "<unk>": 2, "a": 3, "red": 4, "road": 5}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(tmp_path)
    torch.manual_seed(0)
    config = transformers.UMT5Config(vocab_size=6, d_model=16, d_kv=4, d_ff=8, num_layers=2, num_heads=2)
    transformers.UMT5EncoderModel(config).save_pretrained(tmp_path)
    return tmp_path


def test_a_prompt_has_all_rows_and_zeros_behind_its_end(folder):
    encoder = Umt5.load(folder, rows=9)
    told = encoder("a  red\nroad")
    assert told.shape == (1, 9, 16) and told.dtype == torch.float32
    length = int(told.abs().sum(-1).gt(0).sum())
    assert 3 <= length < 9 and not told[0, length:].any()
    assert torch.equal(told, encoder("a red road")) and not torch.equal(told, encoder("a road"))


def test_text_is_cleaned_as_in_training():
    assert cleaned(" a &amp;amp; b\t c ") == "a & b c"


def test_a_folder_without_an_encoder_says_so(tmp_path):
    with pytest.raises(CheckpointError, match="no text encoder in"):
        Umt5.load(tmp_path)


def test_weights_of_something_else_are_refused(folder):
    from safetensors.torch import save_file

    save_file({"nothing": torch.zeros(1)}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"not a UMT5 encoder: .*is missing"):
        Umt5.load(folder)
