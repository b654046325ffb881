"""Wan's text encoder, UMT5-XXL, through transformers: text to the 512 rows that the transformer attends to."""

from __future__ import annotations

import html
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from worldmodel.errors import CheckpointError, MissingExtraError

ROWS = 512


@dataclass(frozen=True)
class Umt5:
    """A loaded encoder and its tokenizer."""

    model: Any
    tokenizer: Any
    rows: int = ROWS

    @staticmethod
    def load(folder: Path, rows: int = ROWS, width: int | None = None) -> Umt5:
        """From a folder in transformers' layout, such as a snapshot of google/umt5-xxl. Nothing is downloaded.

        width: of the rows that the world attends to, which must be the encoder's.
        """
        try:
            from transformers import AutoTokenizer, UMT5EncoderModel
        except ImportError as error:
            raise MissingExtraError(
                "the text encoder needs transformers, which is not installed: pip install transformers"
            ) from error
        if not (folder / "config.json").is_file():
            raise CheckpointError(f"no text encoder in {folder}: expected config.json, weights and tokenizer.json")
        check_width(folder, width)
        try:
            loaded: Any = UMT5EncoderModel.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, output_loading_info=True
            )
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"{folder}: not a UMT5 encoder: {str(error).splitlines()[0]}") from error
        model, found = loaded
        if found["missing_keys"]:
            raise CheckpointError(f"{folder}: not a UMT5 encoder: {sorted(found['missing_keys'])[0]} is missing")
        return Umt5(model.eval().requires_grad_(False), tokenizer, rows)

    @torch.inference_mode()
    def __call__(self, text: str) -> Tensor:
        """[1, rows, dim] float32; rows behind the text's end are zero, as the transformers were trained with."""
        found = self.tokenizer(
            cleaned(text), padding="max_length", truncation=True, max_length=self.rows, return_tensors="pt"
        ).to(self.model.device)
        mask = found["attention_mask"]
        told = self.model(input_ids=found["input_ids"], attention_mask=mask).last_hidden_state
        return (told * mask[..., None]).float()


def check_width(folder: Path, width: int | None) -> None:
    """Compare with what the encoder's description says, before its gigabytes are read."""
    try:
        told = json.loads((folder / "config.json").read_text()).get("d_model")
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{folder / 'config.json'}: not a description of an encoder: {error}") from error
    if width is not None and told != width:
        raise CheckpointError(f"{folder}: its text embeddings are {told} wide, the world was made with {width}")


def cleaned(text: str) -> str:
    """As the models were trained: entities resolved twice, white space collapsed."""
    return " ".join(html.unescape(html.unescape(text)).split())
