"""Train the generator by diffusion forcing on recorded clips (`worldloop train world`).

Every frame of a clip is denoised from its own clean history, in single frames (frame-wise play) or in tiles of rising
sigmas (rolling windows, partial ones too), so that one set of weights knows both. What begins as pure noise, as every
frame does at play, is learned as a sample by the energy score (energy.py), the rest by squared error.

A world that has only ever seen real histories cannot lead its own errors home, so clips are used several times in a
row: first with the recorded history, then with the frames that the world just predicted, whose errors grow with every
turn (error recycling, as in Stable Video Infinity, arXiv:2510.09212, at no extra pass). In the last part of the time
that history is a whole roll-out (self_forcing.py).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from worldmodel.condition.camera_motion import widened
from worldmodel.errors import DatasetError
from worldmodel.prompt.encoder import PromptEncoder
from worldmodel.spec import WorldSpec
from worldmodel.tick import World
from worldmodel.train.codec import load_codec
from worldmodel.train.energy import energy_score
from worldmodel.train.latents import Drawn, LatentSet, load_latents
from worldmodel.train.optimisers import optimisers
from worldmodel.train.preview import preview
from worldmodel.train.run import Budget, Run, load_weights
from worldmodel.train.self_forcing import play_out
from worldmodel.train.team import Team
from worldmodel.transformer.clip import Clip, clip_layer, denoise_clip
from worldmodel.transformer.generator import first_noise

CLIP_FRAMES = 20  # the sink and 19 frames in a row
TURNS = 4  # steps in a row on the same clips, each with a history further from the recording
RECYCLED = 0.6  # share of clips whose history has own errors in it, once there are any
SHORT_RUN = 5  # ticks of a short roll-out
LAST_PART = 0.85  # the last share of the training time, where some sets of clips are roll-outs
ROLL_OUTS = ("none", "futures", "none", "short", "futures", "none", "short", "futures")  # in turn
FUTURE_FRAMES = 28  # of clips with two futures
SWITCHED = 0.1  # share of steps on clips in which the scene changes, cut together where the recording has none
FOUND = 0.05  # share of lessons on clips in which a lost road comes back into view, where the recording has such
LET_GO, HANDS_OFF = 0.1, 2.5  # share of lessons on clips at whose end no key has been held for so many seconds
UNGUIDED = 0.1  # share of lessons on clips whose keys were pressed without looking, where some were and some not
RECOLOURED = 0.45  # share of steps on clips whose every frame is to be made in other colours than its history's
WORN = 0.15  # share of steps on clips whose history is worn, where there is such a recording
SWITCH_FRAMES = 6  # of such a clip: one frame tells as much of a prompt as twenty, so rather more prompts
SETTLING = 2  # frames at a clip's start whose speed cannot be known; they carry no loss
HISTORY_NOISE = 0.1  # a third of the clips have up to this much noise on their history, unannounced
HISTORY_DRIFT = 0.2  # a third of the clips have up to this much of a lasting error on it, as drifting colours are
HISTORY_FADED = 0.12  # a third of the clips have up to this share of every place's difference from the others taken
PROMPT_NOISE = 0.03  # about as much as two texts of the same meaning differ by
MISNAMED = 0.05  # share of clips that are told another clip's prompt to some degree, except where it is news
SINGLE = 0.9  # share of steps with single frames
PURE = 0.75  # share of their frames that start from pure noise, as every frame does at play
SIGMA_FLOOR = 0.5  # x0 errors count 1 / max(sigma, floor)²; lower, and what is copied from the last frame fades
ENERGY = 0.5  # weight of the energy score beside the squared error of the mean, which large errors weigh more in
APART, APART_AT_EDGE = 0.7, 1.0  # weight in it of the distance between draws, see energy.py; and where the new comes in
CONTRAST_FLOOR = 0.05  # clips count 1 / (variance over the picture + floor): a faint road is as much of a road
RATE, HOLD = 0.6, 0.3  # learning rate, in units of optimisers.py, and the share of the time that it is kept


def train_world(
    spec: WorldSpec,
    data: Path,
    out: Path,
    minutes: float,
    batch: int = 64,
    seed: int = 0,
    resume: bool = False,
    init: Path | None = None,
    recoloured: Path | None = None,
    worn: Path | None = None,
) -> dict[str, float]:
    """Train until `minutes` are spent; needs OUT/codec.safetensors, writes OUT/world.safetensors.

    init: weights to begin from instead of random ones; may be those of a world that knew neither camera nor tracks,
    moved nothing, had no convolutions at the end, or whose prompts did not skip.
    recoloured: a recording of the same drives (or the first of them) in other colours, to learn prompt switches from.
    worn: one of the same drives as a world wears them out (`record --worn`), to learn to mend its own pictures.
    """
    team = Team.join()
    torch.manual_seed(seed + 1000 * team.rank)
    latents, world = prepare(spec, data, out, team)
    twins, damaged = (prepare(spec, other, out, team)[0] if other else None for other in (recoloured, worn))
    for other, path in ((twins, recoloured), (damaged, worn)):
        if other and not latents.same_drives(other):
            raise DatasetError(f"{path} does not show the drives of {data}: record both with the same --seed")
    if init is not None:
        load_weights(world.generator, init, partial(fitted, world))
    starts, switches = latents.starts(CLIP_FRAMES - 1), latents.starts(CLIP_FRAMES - 1, switch_after=SETTLING)
    twin_starts, damaged_starts = (other.starts(CLIP_FRAMES - 1) if other else starts for other in (twins, damaged))
    future_frames = min(FUTURE_FRAMES, 1 + latents.longest)
    future_starts, future_damaged = (
        future_moments(other or latents, future_frames - 1, spec.window + 1) for other in (latents, damaged)
    )
    rare = {
        frames: rare_moments(latents, frames - 1, spec.tick_hz, begin)
        for frames, begin in ((CLIP_FRAMES, None), (future_frames, spec.window + 1))
    }
    layer = compiled(clip_layer, minutes, team)
    run = Run(
        out,
        "world",
        world.generator,
        optimisers(world.generator, RATE),
        Budget(minutes, hold=HOLD),
        team,
        resume=resume,
        code=world.codec.code,
    )
    # Two processes must not draw the same clips, and a resumed run not the same clips again.
    draw = torch.Generator(device=team.device).manual_seed(hash((seed, team.rank, run.step)) & 0x7FFFFFFF)
    lesson: Lesson | None = None

    def clips(roll_out: bool) -> Lesson:
        kind = float(torch.rand((), generator=draw, device=team.device))
        twin = twins if kind < RECOLOURED else None
        wear = damaged if RECOLOURED <= kind < RECOLOURED + WORN else None
        among = twin_starts if twin else damaged_starts if wear else starts
        cut = kind > 1 - SWITCHED and latents.separate
        if kind > 1 - SWITCHED:
            among = switches if len(switches) else among
        else:
            among = seldom(CLIP_FRAMES, kind + SWITCHED, among)
        frames = SWITCH_FRAMES if twin else CLIP_FRAMES
        start = chosen(among, batch * CLIP_FRAMES // frames)
        lesson = Lesson(latents.clips(spec, start, frames, draw, twin, wear, cut), twin is not None)
        if roll_out and not twin and not cut:
            lesson.roll_out(world, draw)
        return lesson

    def futures() -> Lesson:
        kind = float(torch.rand((), generator=draw, device=team.device))
        wear = damaged if kind < WORN else None
        among = seldom(future_frames, kind, future_damaged if wear else future_starts)
        # As many frames to compute as in other steps, where two draws share a history.
        start = chosen(among, max(1, batch * CLIP_FRAMES * 3 // (4 * future_frames)))
        lesson = Lesson(latents.clips(spec, start, future_frames, draw, None, wear))
        lesson.roll_out_futures(world, draw)
        return lesson

    def seldom(frames: int, kind: float, among: Tensor) -> Tensor:
        """Starts of what recordings show too seldom, for the topmost shares of `kind`; of anything for the others."""
        for share, starts in rare[frames]:
            if kind > 1 - share and len(starts):
                return starts
            kind += share
        return among

    def chosen(among: Tensor, count: int) -> Tensor:
        return among[torch.randint(len(among), (count,), device=team.device, generator=draw)]

    def step(number: int) -> dict[str, Tensor]:
        nonlocal lesson
        with torch.autocast(team.device.type, torch.bfloat16):
            if lesson is None or number % TURNS == 0:
                roll_out = ROLL_OUTS[number // TURNS % len(ROLL_OUTS)]
                late = team.agree(run.done) > 1 - LAST_PART
                lesson = futures() if late and roll_out == "futures" else clips(late and roll_out == "short")
            figures = lesson.loss(world, *lesson.levels(draw), layer, draw)
        figures["loss"].backward()
        return {name: figure.detach() for name, figure in figures.items()}

    return run.loop(step, lambda step: preview(world, latents, out / f"world-{step:06d}.png"))


class Lesson:
    """A batch of clips, and the frames that the world itself made for them so far."""

    def __init__(self, drawn: Drawn, recoloured: bool = False) -> None:
        self.recoloured = recoloured
        self.clip, self.target = drawn.clip, drawn.target
        # A renamed history belongs to frames of the newest scene only: that is all a player meets after a switch.
        self.counts = (~(drawn.renamed[:, None] & (drawn.scene != drawn.scene[:, -1:]))).float()
        self.counts[:, : SETTLING + 1] = 0
        contrast = self.target.var((3, 4)).mean((1, 2))[:, None]
        self.worth = (0.25 + CONTRAST_FLOOR) / (contrast + CONTRAST_FLOOR)
        frame = torch.arange(self.target.shape[1], device=self.target.device)[:, None, None, None]
        self.free, self.past = frame > SETTLING, frame > 0  # what may be the world's own; all but the sink
        self.cut = drawn.cut[:, :, None, None, None]
        self.returning = drawn.returning[:, :, None, None] > 0
        self.own: Tensor | None = None
        self.slow: Tensor | None = None  # [batch, draws · frames, numbers, 1, 1], that led to the world's own frames
        self.rolled = False
        self.futures = 1  # histories of each clip, one for each draw or the same for all

    def roll_out(self, world: World, draw: torch.Generator) -> None:
        """Let the world play the clips' keys, with cache and schedule as at play, a few ticks at a time.

        Then the picture is worn, but lies where the recording has it, so that mending it can be learned.
        """
        self.own, _ = play_out(world, self.clip, world.spec.window + 1, SHORT_RUN, draw)
        self.rolled = True

    def roll_out_futures(self, world: World, draw: torch.Generator) -> None:
        """Let the world play every clip twice, from its first frames to its end: two futures of one beginning.

        After many ticks where things are is anyone's guess. But guesses are learned as draws are, by the energy score:
        from histories of their own, two of them shall lie as far from each other as from what was recorded. (As
        ensembles of forecasts are trained to stay as wide as they are wrong, Lang et al., arXiv:2412.15832; gradient
        goes through the last tick alone.)
        """
        self.clip, self.futures = self.clip.repeated(2), 2
        begin = world.spec.window + 1
        self.own, slow = play_out(world, self.clip, begin, self.clip.clean.shape[1] - 1 - begin, draw)
        self.slow, self.rolled = slow.unflatten(0, (-1, self.futures)).flatten(1, 2)[..., None, None], True

    def levels(self, draw: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """Noise levels and tile starts for `loss`. What is seen of a frame besides its history must agree with that,
        so two futures are drawn from nothing but noise.
        """
        batch, frames = self.counts.shape
        if self.futures > 1:
            return torch.ones(batch, 2 * frames, device=self.counts.device), None
        return draw_tiles(batch, frames, draw)

    def loss(
        self,
        world: World,
        sigma: Tensor,
        tile_start: Tensor | None,
        layer: Callable[..., Tensor],
        draw: torch.Generator,
    ) -> dict[str, Tensor]:
        """Energy score of frames that start from pure noise, and squared error of their mean; weighted x0 error of all
        others that can be known; the plain error of the former (`x0` or `x0_own`, by their history), and how far their
        draws spread. The first draw's predictions become part of the history of the next turn.

        sigma: [batch, draws · frames], pure noise in all draws of a frame or in none. One draw: squared errors alone.
        """
        target, frames = self.target, self.target.shape[1]
        draws = sigma.shape[1] // frames
        targets = target.repeat(1, draws, 1, 1, 1)
        level = sigma[:, :, None, None, None]
        noise = torch.randn_like(targets)
        begun = first_noise(noise)
        if self.slow is not None:
            begun = torch.cat(
                [self.slow.expand(*begun.shape[:2], -1, *begun.shape[3:]), begun[:, :, self.slow.shape[2] :]], 2
            )
        noisy = torch.where(level < 1, (1 - level) * targets + level * noise, begun)
        shown, levels = (part.unflatten(1, (self.futures, -1)).flatten(0, 1) for part in (noisy, sigma))
        made = denoise_clip(
            world.generator, self._history(draw), shown, levels, tile_start, world.spec.window, layer
        ).float()
        made = made.unflatten(0, (-1, self.futures)).flatten(1, 2)
        error = (made - targets).square().mean((2, 3, 4))
        weight = (self.worth * self.counts).repeat(1, draws) / sigma.clamp(min=SIGMA_FLOOR) ** 2
        pure = self.counts * (sigma[:, :frames] == 1)
        figures, ahead = {}, "_ahead" * (self.futures > 1)
        if draws == 1:
            lost = (error * weight).sum()
        else:
            first, second = made.chunk(2, 1)
            # Something rare comes into view, from one side or another: only the proper score has it come as often.
            known = apart_at_places(*world.generator.grid).to(target.device)
            if self.recoloured:
                known = torch.zeros_like(known)  # which colours are meant is not for the noise to say
            apart = torch.where(self.returning | (self.futures > 1), 1.0, known)
            score, spread = energy_score(first, second, target, world.spec.generator.patch, apart)
            of_mean = ((first - target) * (second - target)).mean((2, 3, 4))  # in expectation, over independent draws
            if self.futures > 1:  # so wide that a single product says nothing of the mean
                of_mean = torch.zeros_like(of_mean)
            lost = (error * weight * (sigma < 1)).sum() / draws
            lost = lost + ((ENERGY * self.worth.sqrt() * score + self.worth * of_mean) * pure).sum()
            figures["spread" + ahead] = (spread * pure).sum() / pure.sum().clamp(min=1e-6)
        figures["loss"] = lost / self.counts.sum().clamp(min=1)
        kind = "x0_own" if self.own is not None else "x0"
        figures[kind + ahead] = (error[:, :frames] * pure).sum() / pure.sum().clamp(min=1e-6)
        if not self.rolled:
            own = torch.where(self.free, made[:, :frames].detach(), self.clip.clean)
            # Of another scene nothing says what is seen first: a history must show at least half of what it was.
            self.own = torch.where(self.cut, torch.lerp(self.clip.clean, own, 0.5), own)
        return figures

    def _history(self, draw: torch.Generator) -> Clip:
        """The clips with own errors and unannounced noise on some histories, and a little noise on every prompt."""
        clip = self.clip
        batch, device = clip.clean.shape[0], clip.clean.device

        def some(share: float, most: float) -> Tensor:
            """A random amount up to `most` for a share of the clips, 0 for the others."""
            amount, chosen = torch.rand(2, batch // self.futures, 1, 1, 1, 1, device=device, generator=draw)
            return (amount * most * (chosen < share)).repeat_interleave(self.futures, 0)

        clean = clip.clean
        if self.own is not None:
            # Roll-outs mostly as they are; of single steps, amounts above 1 are errors that have grown for longer.
            amount = some(RECYCLED, 2.0).clamp(max=1) if self.rolled else some(RECYCLED, 1.5)
            amount = torch.ones_like(amount) if self.futures > 1 else amount
            clean = clean + amount * (self.own - clean)
        mean = clean.mean((3, 4), keepdim=True)
        clean = torch.where(self.past, torch.lerp(clean, mean, some(0.35, HISTORY_FADED)), clean)
        drift = torch.randn(batch, 1, clean.shape[2], 1, 1, device=device) + 0.3 * slope(clean[:, :1])
        clean = clean + some(0.35, HISTORY_NOISE) * torch.randn_like(clean)
        clean = torch.where(self.past, clean + some(0.35, HISTORY_DRIFT) * drift, clean)
        told, said = clip.clean_prompt, clip.prompt
        amount = some(MISNAMED, 1.0).squeeze(-1)
        told = torch.lerp(told, told.roll(1, 0), amount * (1 - clip.clean_fresh)[:, :, None, None])
        said = torch.lerp(said, said.roll(1, 0), amount * (1 - clip.fresh)[:, :, None, None])
        jitter = PROMPT_NOISE * torch.randn(batch, 1, *said.shape[2:], device=device)
        return replace(clip, clean=clean, clean_prompt=told + jitter, prompt=said + jitter)


def prepare(spec: WorldSpec, data: Path, out: Path, team: Team) -> tuple[LatentSet, World]:
    """The recording as latents on the team's device, and a world with the trained codec and a fresh generator."""
    codec = load_codec(spec, out)
    encoder = PromptEncoder.load()
    latents = load_latents(data, spec, codec, encoder.encode, team).to(team.device)
    world = World(spec)
    world.codec = codec
    return latents, world.to(team.device)


def future_moments(latents: LatentSet, length: int, begin: int) -> Tensor:
    """Starts of clips of `length` frames that are played from frame `begin` on: those with keys that nobody pressed for
    what was to be seen, if there are any.

    Keys that answer the road tell where it went. Scored against such a drive, a world does best that puts the road
    wherever it is steered: the road came along with cars that nobody steered.
    """
    starts = latents.starts(length)
    unguided = latents.unguided(starts, begin, length)
    return unguided if len(unguided) else starts


def rare_moments(
    latents: LatentSet, length: int, tick_hz: float, begin: int | None = None
) -> list[tuple[float, Tensor]]:
    """What recordings show too seldom: the share of lessons on it, and its clips of `length` frames by their starts.

    begin: of clips that are played from this frame on, only those as `future_moments` has them.
    """
    moments = [(FOUND, latents.found(length)), (LET_GO, latents.let_go(length, round(HANDS_OFF * tick_hz)))]
    if begin is not None:
        return [(share, latents.unguided(starts, begin, length)) for share, starts in moments]
    return moments if latents.open_loop.all() else [*moments, (UNGUIDED, future_moments(latents, length, 1))]


def fitted(world: World, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of another generator for this world's: what that one had not is as new, and at first weighs nothing."""
    parts = ("moved.", "conv_head.", "led.")
    new = {name: value for name, value in world.generator.state_dict().items() if name.startswith(parts)}
    for name in ("adaln.weight", "head_modulation.weight", "carry.weight"):
        if name in weights and weights[name].shape[1] == world.spec.generator.dim:
            weights = weights | {name: F.pad(weights[name], (0, world.generator.words))}
    return new | widened(world.spec, weights)


def apart_at_places(rows: int, columns: int) -> Tensor:
    """The weight of the distance between draws, [rows, columns].

    What comes into view comes in at an edge, where nothing shown before says what it is. Everything else can be known,
    and a world that doubts it shall not draw its doubts.
    """
    places = torch.full((rows, columns), APART_AT_EDGE)
    places[1:-1, 1:-1] = APART
    return places


def slope(like: Tensor) -> Tensor:
    """Standard normal noise in four corners, drawn out to [batch, frames, channels, rows, columns].

    Nothing finer: bumps of the size of what is in the picture would teach the world to iron that out.
    """
    corners = torch.randn(*like.shape[:3], 2, 2, device=like.device).flatten(0, 1)
    full = F.interpolate(corners, like.shape[-2:], mode="bilinear", align_corners=True)
    return full.unflatten(0, like.shape[:2])


def draw_tiles(batch: int, frames: int, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
    """Noise levels and tile starts: mostly of single frames in two draws, [batch, 2 · frames] and None, else of tiles
    in one, [batch, frames] each.
    """
    device = generator.device

    def draw(*shape: int) -> Tensor:
        return torch.rand(shape, device=device, generator=generator)

    if draw(1) < SINGLE:
        # Low levels more often: there faint things are decided, such as the squares on the grass.
        level = 0.05 + 0.95 * draw(batch, 2, frames) ** 2
        return torch.where(draw(batch, 1, frames) < PURE, 1.0, level).flatten(1), None
    length = 2 + (3 * draw(batch, 1)).long()
    frame = torch.arange(frames, device=device).expand(batch, -1)
    place = (frame + (length * draw(batch, 1)).long()) % length
    # As at play, where a tile's levels are its places; in half of the clips anywhere below, as in partial windows.
    below = torch.where(draw(batch, 1) < 0.5, draw(batch, frames), 1.0)
    return ((place + below) / length).clamp(min=0.05), (frame - place).clamp(min=0)


def compiled(function: Callable[..., Tensor], minutes: float, team: Team) -> Callable[..., Tensor]:
    """`function` compiled where that can be done and pays: it takes a minute, and one block then serves for all."""
    able = team.device.type == "cuda" or shutil.which("g++") is not None
    torch._dynamo.config.recompile_limit = 16  # shapes of clips: of a few frames, many, or two futures; in tiles or not
    return torch.compile(function, dynamic=False) if able and minutes > 5 else function
