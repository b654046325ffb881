"""What a Waypoint-1 world is, apart from its weights; and how its files are recognised."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from worldmodel.errors import SpecError

# Kind of noise conditioning: are the six matrices one set for all layers, and is there a bias per layer?
NOISE_CONDITIONING = {"wan": (True, True), "dit_air": (True, False), "dit": (False, False)}


@dataclass(frozen=True)
class WaypointSpec:
    """Sizes, windows and noise levels; the defaults are Waypoint-1-Small's, from its published `config.json`."""

    d_model: int = 2560
    n_heads: int = 40
    n_kv_heads: int = 20
    n_layers: int = 22
    mlp_hidden: int = 12800  # width inside a layer's MLP
    channels: int = 16  # of the latent
    height: int = 16  # rows of tokens
    width: int = 16  # columns of tokens
    patch: tuple[int, int] = (2, 2)  # latent cells per token
    n_buttons: int = 256
    local_window: int = 16  # frames
    global_window: int = 128  # frames, of which every `global_pinned_dilation`-th is kept
    global_pinned_dilation: int = 8
    global_attn_period: int = 4  # layers from one global one to the next
    global_attn_offset: int = 0  # the first global layer
    value_residual: bool = False
    gated_attn: bool = True
    noise_conditioning: str = "wan"
    ctrl_conditioning_period: int | None = 3  # None: no controller
    prompt_conditioning_period: int | None = 3  # None: no prompt
    prompt_embedding_dim: int = 2048
    sigmas: tuple[float, ...] = (1.0, 0.8609585762023926, 0.729332447052002, 0.3205108940601349, 0.0)
    commit_sigma: float = 0.0  # of the pass whose keys are kept
    noise_hidden: int = 10240  # width inside the noise level's embedding
    ctrl_hidden: int = 12800  # width inside the controller's embedding
    fusion_hidden: int = 2560  # width inside the controller's fusion

    def __post_init__(self) -> None:
        if self.d_model % self.n_heads or self.n_heads % self.n_kv_heads or self.head_dim % 16:
            raise SpecError(
                "waypoint: n_kv_heads must divide n_heads, and d_model / n_heads must be a multiple of 16: "
                f"got {self.d_model}, {self.n_heads} and {self.n_kv_heads}"
            )
        if self.noise_conditioning not in NOISE_CONDITIONING:
            known = ", ".join(NOISE_CONDITIONING)
            raise SpecError(f"waypoint.noise_conditioning must be one of {known}: got {self.noise_conditioning!r}")
        if self.global_window < self.global_pinned_dilation:
            raise SpecError(f"waypoint.global_window must be at least the dilation {self.global_pinned_dilation}")
        if sorted(self.sigmas, reverse=True) != list(self.sigmas) or self.sigmas[-1] != 0:
            raise SpecError(f"waypoint.sigmas must fall to 0: got {self.sigmas}")

    @property
    def head_dim(self) -> int:
        return self.d_model // self.n_heads

    @property
    def tokens(self) -> int:
        """Tokens per frame."""
        return self.height * self.width

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, rows, columns."""
        return self.channels, self.height * self.patch[0], self.width * self.patch[1]

    @property
    def controls(self) -> int:
        """Numbers of a controller vector: mouse x and y, buttons, scroll wheel."""
        return self.n_buttons + 3

    def is_global(self, layer: int) -> bool:
        return (layer - self.global_attn_offset) % self.global_attn_period == 0

    def dilation(self, layer: int) -> int:
        """A layer keeps the frames whose number is a multiple of this."""
        return self.global_pinned_dilation if self.is_global(layer) else 1

    def slots(self, layer: int) -> int:
        """Frames that a layer can keep."""
        return self.global_window // self.global_pinned_dilation if self.is_global(layer) else self.local_window

    def sees_prompt(self, layer: int) -> bool:
        return self.prompt_conditioning_period is not None and layer % self.prompt_conditioning_period == 0

    def sees_controller(self, layer: int) -> bool:
        return self.ctrl_conditioning_period is not None and layer % self.ctrl_conditioning_period == 0


def spec_of(shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any]) -> WaypointSpec:
    """The spec of a Waypoint-1 transformer: sizes from its keys and shapes, the rest from its `config.json`.

    Where the config says nothing, Waypoint-1-Small's values hold.
    """
    known, blocks = WaypointSpec(), "transformer.blocks."
    d_model, channels, *patch = shapes["patchify.weight"]
    n_layers = 1 + max(int(name.split(".")[2]) for name in shapes if name.startswith(blocks))
    gate = shapes.get(f"{blocks}0.attn.gate_proj.weight")
    n_heads = int(gate[0] if gate else config.get("n_heads", known.n_heads))
    prompt = shapes.get(f"{blocks}0.prompt_cross_attn.k_proj.weight")
    controller = shapes.get("ctrl_emb.mlp.fc1.weight")
    return WaypointSpec(
        d_model=d_model,
        n_heads=n_heads,
        n_kv_heads=shapes[f"{blocks}0.attn.k_proj.weight"][0] * n_heads // d_model,
        n_layers=n_layers,
        mlp_hidden=shapes[f"{blocks}0.mlp.fc1.weight"][0],
        channels=channels,
        height=config.get("height", known.height),
        width=config.get("width", known.width),
        patch=(patch[0], patch[1]),
        n_buttons=controller[1] - 3 if controller else 0,
        local_window=config.get("local_window", known.local_window),
        global_window=config.get("global_window", known.global_window),
        global_pinned_dilation=config.get("global_pinned_dilation", known.global_pinned_dilation),
        global_attn_period=config.get("global_attn_period", known.global_attn_period),
        global_attn_offset=config.get("global_attn_offset", known.global_attn_offset),
        value_residual=f"{blocks}0.attn.v_lamb" in shapes,
        gated_attn=gate is not None,
        noise_conditioning=_noise_conditioning(shapes, config),
        ctrl_conditioning_period=_period(shapes, "ctrl_mlpfusion.mlp.fc1", n_layers),
        prompt_conditioning_period=_period(shapes, "prompt_cross_attn.k_proj", n_layers),
        prompt_embedding_dim=prompt[0] if prompt else known.prompt_embedding_dim,
        sigmas=tuple(config.get("scheduler_sigmas", known.sigmas)),
        commit_sigma=config.get("cache_pass_sigma", known.commit_sigma),
        noise_hidden=shapes["denoise_step_emb.mlp.fc1.weight"][0],
        ctrl_hidden=controller[0] if controller else known.ctrl_hidden,
        fusion_hidden=shapes.get(f"{blocks}0.ctrl_mlpfusion.mlp.fc1.weight", (known.fusion_hidden,))[0],
    )


def _noise_conditioning(shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any]) -> str:
    biased = "transformer.blocks.0.cond_head.bias_in" in shapes
    return str(config.get("noise_conditioning", "wan" if biased else "dit_air"))


def _period(shapes: Mapping[str, tuple[int, ...]], part: str, n_layers: int) -> int | None:
    """Every how many layers a part stands, the first having it; None where no layer does."""
    having = [layer for layer in range(n_layers) if f"transformer.blocks.{layer}.{part}.weight" in shapes]
    if not having:
        return None
    return having[1] if len(having) > 1 else n_layers
