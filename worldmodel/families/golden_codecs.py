"""Golden cases of the codecs: what the public code computed, computed here. See golden.py for the dispatch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from worldmodel.codec.streaming import StreamingCodec, without_lead
from worldmodel.codec.taehv import Taehv, TaehvSpec
from worldmodel.codec.wan_vae import WanVae, WanVaeSpec
from worldmodel.errors import SpecError
from worldmodel.families.loading import load_strictly

if TYPE_CHECKING:
    from worldmodel.families.golden import Case


GROUP = 4  # pictures that the public code encodes at once, after the first; it leaves out what does not fill a group


def run_wan_vae(case: Case) -> dict[str, Tensor]:
    """Kind `wan_vae_stream`: decode in portions, encode a video and its first picture."""
    with torch.device("meta"):
        codec = WanVae(wan_vae_spec(case.meta)).eval()
    load_strictly(codec, case.weights, case.name)
    video = case.inputs["video"]
    video = video[:, : 1 + (video.shape[1] - 1) // GROUP * GROUP]
    return {
        **_decode(codec, case),
        "encode.image_latent": codec.encode_video(video[:, :1]),
        "encode.latents": codec.encode_video(video),
    }


def wan_vae_spec(meta: dict[str, Any]) -> WanVaeSpec:
    model, norm = meta["model"], meta["latent_norm"]
    if model.get("attn_scales"):
        raise SpecError(f"wan_vae: model.attn_scales must be empty, as published: got {model['attn_scales']}")
    return WanVaeSpec(
        dim=model["dim"],
        z_dim=model["z_dim"],
        dim_mult=tuple(model["dim_mult"]),
        num_res_blocks=model["num_res_blocks"],
        temporal_downsample=tuple(model["temporal_downsample"]),
        mean=tuple(norm["mean"]),
        std=tuple(norm["std"]),
    )


def run_taehv(case: Case) -> dict[str, Tensor]:
    """Kind `taehv`: decode in portions, encode a video."""
    with torch.device("meta"):
        codec = Taehv(taehv_spec(case.meta)).eval()
    load_strictly(codec, case.weights, case.name)
    return {**_decode(codec, case), "encode.latents": codec.encode_video(case.inputs["video"])}


def taehv_spec(meta: dict[str, Any]) -> TaehvSpec:
    model = meta["model"]
    return TaehvSpec(
        decoder_channels=tuple(model["decoder_channels"]),
        encoder_channels=model["encoder_channels"],
        latent_channels=model["latent_channels"],
        patch_size=model["patch_size"],
        decoder_time_upscale=tuple(model["decoder_time_upscale"]),
        decoder_space_upscale=tuple(model["decoder_space_upscale"]),
        encoder_time_downscale=tuple(model["encoder_time_downscale"]),
    )


def _decode(codec: StreamingCodec, case: Case) -> dict[str, Tensor]:
    """`decode.chunkN`: the pictures of the N-th portion of `run.decode_chunks` latent frames."""
    latents, outputs = case.inputs["latents"], {}
    batch, _, _, rows, columns = latents.shape
    state = codec.empty_state(batch, rows, columns)
    for n, portion in enumerate(latents.split(case.meta["run"]["decode_chunks"], dim=1)):
        starting = state["decoder.phase"] == 0
        pictures, state = codec.decode(portion, state)
        outputs[f"decode.chunk{n}"] = without_lead(pictures, starting, codec.growth)
    return outputs
