"""A picture that a world starts from: the image encoder's tokens, and channels beside the latents (Wan image-to-video).

The channels of a latent frame are a mask (one in the first frame, zero after it) and a latent. The published pipelines
(Matrix-Game-2/inference_streaming.py of github.com/SkyworkAI/Matrix-Game, wan/image2video.py of
github.com/Wan-Video/Wan2.1) encode the picture followed by grey ones, as many as the clip is long. The encoder forgets:
after some frames the latents of grey no longer change, so the last one kept here stands for all later ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as nnf
from torch import Tensor

from worldmodel.errors import CheckpointError, MissingExtraError, SpecError

FRAMES = 32  # latent frames kept; Wan's encoder, which remembers longest, looks back over 112 pictures, 28 frames
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # of CLIP's training pictures


class Encoder(Protocol):
    """The encoding half of a codec (codec/wan_vae.py, codec/taehv.py)."""

    growth: int

    def empty_encoder_state(self, batch: int, rows: int, columns: int) -> dict[str, Tensor]: ...

    def encode(self, pictures: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]: ...

    def from_signed(self, pictures: Tensor) -> Tensor:
        """Pictures within −1..1 in the codec's own range."""
        ...


def read_picture(path: Path, height: int, width: int) -> Tensor:
    """A picture file [1, 3, height, width] in [−1, 1], cropped about its middle to the shape that is asked for."""
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise MissingExtraError("start pictures need pillow, which is not installed: pip install pillow") from error
    import numpy as np

    try:
        with Image.open(path) as opened:
            upright = ImageOps.exif_transpose(opened).convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise SpecError(f"{path}: not a picture that can be read: {str(error).splitlines()[0]}") from error
    fitted = ImageOps.fit(upright, (width, height), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(fitted)).permute(2, 0, 1)[None].float() / 127.5 - 1


def as_bytes(picture: Tensor) -> Tensor:
    """uint8 [1, height, width, 3] of a picture [1, 3, height, width] in [−1, 1]."""
    return ((picture + 1) * 127.5).round().to(torch.uint8).movedim(1, -1)


@torch.inference_mode()
def channels(codec: Encoder, picture: Tensor, rows: int, columns: int, mask: int) -> Tensor:
    """What stands beside the latents of the first frames: [1, FRAMES, mask + latent channels, rows, columns].

    picture: [1, 3, height, width] in [−1, 1], in the codec's type. mask: channels of the mask.
    """
    state = codec.empty_encoder_state(1, rows, columns)
    # A stream's first picture is a latent frame by itself: the copies in front of it do not count.
    shown = codec.from_signed(picture[:, None].expand(-1, codec.growth, -1, -1, -1))
    grey = codec.from_signed(torch.zeros_like(shown))
    found = []
    for _ in range(FRAMES):
        latent, state = codec.encode(shown, state)
        found.append(latent)
        shown = grey
    latents = torch.cat(found, 1)
    first = latents.new_zeros(1, FRAMES, mask, rows, columns)
    first[:, 0] = 1
    return torch.cat([first, latents], 2)


@dataclass(frozen=True)
class ClipVision:
    """The vision tower of CLIP. Wan's image-to-video models attend to what comes out of its last layer but one."""

    model: Any

    @staticmethod
    def load(folder: Path) -> ClipVision:
        """From a folder in transformers' layout, such as `image_encoder` of a Diffusers Wan; nothing is downloaded."""
        try:
            from transformers import CLIPVisionModel
        except ImportError as error:
            raise MissingExtraError(
                "the image encoder needs transformers, which is not installed: pip install transformers"
            ) from error
        if not (folder / "config.json").is_file():
            raise CheckpointError(f"no image encoder in {folder}: expected config.json and weights")
        try:
            loaded: Any = CLIPVisionModel.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, output_loading_info=True
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"{folder}: not a CLIP vision model: {str(error).splitlines()[0]}") from error
        model, found = loaded
        if found["missing_keys"]:
            raise CheckpointError(f"{folder}: not a CLIP vision model: {sorted(found['missing_keys'])[0]} is missing")
        return ClipVision(model.eval().requires_grad_(False))

    @property
    def tokens(self) -> int:
        """Rows that a picture becomes: one for each patch, and one for all."""
        config = self.model.config
        return int(config.image_size // config.patch_size) ** 2 + 1

    @torch.inference_mode()
    def __call__(self, picture: Tensor) -> Tensor:
        """[1, tokens, dim] float32 of a picture [1, 3, height, width] in [−1, 1], squeezed into a square, uncropped."""
        side = self.model.config.image_size
        square = nnf.interpolate(picture.float(), (side, side), mode="bicubic") / 2 + 0.5
        mean, std = (torch.tensor(numbers)[:, None, None] for numbers in (MEAN, STD))
        given = ((square - mean) / std).to(next(self.model.parameters()).dtype)
        found: Tensor = self.model(given, output_hidden_states=True).hidden_states[-2]
        return found.float()
