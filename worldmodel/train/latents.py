"""A recording as the generator trains on it: latents of every frame, actions with history, captions as prompt
embeddings.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from worldmodel.codec.small import Codec
from worldmodel.errors import DatasetError
from worldmodel.spec import CameraSpec, DragSpec, WorldSpec
from worldmodel.train.dataset import Dataset
from worldmodel.train.envs.motion import picture_motion
from worldmodel.train.envs.poses import camera_motion
from worldmodel.train.frames import as_input, shards_of_frames
from worldmodel.train.run import write_whole
from worldmodel.train.team import Team
from worldmodel.transformer.clip import Clip
from worldmodel.transformer.generator import FRESH

CAPTIONS_PER_SCENE = 4
IN_VIEW = "in_view"  # the fact by which an environment tells whether what it is about can be seen, such as a road
OPEN_LOOP = "open_loop"  # the one by which it tells whether a frame's keys were pressed without regard to what is seen
LED, LED_IN_PART = 0.4, 0.3  # shares of clips whose camera is led all the time, and in a part of it
LED_WITHOUT_KEYS = 0.5  # share of these in which no key is held meanwhile
DRAGGED, DRAGGED_IN_PART = 0.3, 0.2  # shares of clips in which points are led all the time, and in a part of it
POINTS = (1, 2, 4, 8)  # that are led in a frame of such a clip, on average
SWITCH = 0.6  # share of recoloured clips that show the moment of a switch; in the others colours have drifted …
AT_ONCE = 0.6  # share of the former that have nothing of the new colours yet
DRIFTED = 0.5  # … by up to this share of the way
SOON = 40  # ticks within which what is out of view must come back, or the clip is told that all is lost
CUT_FIRST, CUT_LAST = 3, 4  # frames before and after a cut from one scene to another, at least
SINK_OF_BEFORE = 0.5  # share of clips, of those that begin while their scene is news, whose sink may be of before it


@dataclass(frozen=True)
class Drawn:
    """Clips to learn from. target: the latents to be predicted, [batch, frames, channels, rows, columns], those of
    the clip or the same drive in other colours. renamed: [batch] bool, whose history is told the newest prompt (as
    KV-recache does). scene: [batch, frames]. returning: [batch, frames], 1 where what the game is
    about is out of view and about to come back. cut: [batch, frames] bool, the first frame of another scene.
    """

    clip: Clip
    target: Tensor
    renamed: Tensor
    scene: Tensor
    returning: Tensor
    cut: Tensor


@dataclass(frozen=True)
class LatentSet:
    """latents: [sides, frames, channels, rows, columns] float16; side 1, if there, is the mirrored picture
    actions: [sides, frames, action_dim] float32, what led to each frame
    episode, first: [frames] int64, the frame's episode and that episode's first frame
    scene, scene_first: [frames] int64, the frame's scene and that scene's first frame
    captions: [scenes, CAPTIONS_PER_SCENE] int64, rows of prompts
    prompts: [captions, prompt_tokens, prompt_dim] float32
    blank: [frames] bool, where what the game is about is out of view; nowhere in recordings that do not tell
    open_loop: [frames] bool, where nobody looked when the frame's keys were pressed; everywhere where nobody tells
    camera: [sides, frames, 4] float32, see condition/camera_motion.py; of worlds whose camera can be led
    tracks: [sides, frames, DragSpec.NUMBERS, rows, columns] float16, the map (condition/drag.py) of all that is known
        to have moved; of worlds where points can be led
    """

    latents: Tensor
    actions: Tensor
    episode: Tensor
    first: Tensor
    scene: Tensor
    scene_first: Tensor
    captions: Tensor
    prompts: Tensor
    blank: Tensor
    open_loop: Tensor
    camera: Tensor | None = None
    tracks: Tensor | None = None

    def to(self, device: torch.device) -> LatentSet:
        there = {name: tensor.to(device) for name, tensor in vars(self).items() if tensor is not None}
        return LatentSet(**there)

    def with_nobody_leading(self) -> LatentSet:
        """The same, told by keys alone."""
        camera = None if self.camera is None else torch.zeros_like(self.camera)
        return replace(self, camera=camera, tracks=None)

    def starts(self, length: int, switch_after: int | None = None) -> Tensor:
        """Every frame from which `length` frames of one episode follow, itself included.

        switch_after: only those whose scene changes on the way, so many frames later or after that.
        """
        last = self.episode.roll(-(length - 1))
        ok = (last == self.episode) & (torch.arange(len(last), device=last.device) <= len(last) - length)
        if not ok.any():
            raise DatasetError(f"no episode has {length} frames in a row: record longer ones")
        if switch_after is not None:
            ok &= self.scene.roll(-switch_after) != self.scene.roll(-(length - 1))
        return ok.nonzero().squeeze(1)

    def found(self, length: int) -> Tensor:
        """Those starts of `length` frames in which the game's subject comes into view after a time without it."""
        starts = self.starts(length)
        comes = self.blank & ~self.blank.roll(-1)
        so_far = comes.cumsum(0)
        return starts[so_far[starts + length - 2] - so_far[starts] + comes[starts].long() > 0]

    def let_go(self, length: int, ticks: int) -> Tensor:
        """Those starts of `length` frames before whose last one no key was held for `ticks`."""
        starts = self.starts(length)
        held = (self.actions[0] != 0).any(1)
        tick = torch.arange(len(held), device=held.device)
        since = torch.maximum(torch.cummax(torch.where(held, tick, -1), 0).values, self.first)
        last = starts + length - 1
        return starts[last - since[last] >= ticks]

    def unguided(self, starts: Tensor, begin: int, length: int) -> Tensor:
        """Those of `starts` of `length` frames whose keys, from frame `begin` on, were pressed without looking."""
        looked = (~self.open_loop).cumsum(0)
        return starts[looked[starts + length - 1] == looked[starts + begin - 1]]

    def astray(self) -> Tensor:
        """[frames] bool: out of view, and not to come back within SOON ticks of the same episode."""
        frame = torch.arange(len(self.blank), device=self.blank.device)
        last = len(frame) - 1
        seen = torch.where(self.blank, last + SOON + 1, frame).flip(0).cummin(0).values.flip(0)  # the next in view
        return (seen - frame > SOON) | (self.episode[seen.clamp(max=last)] != self.episode)

    def history(self, side: Tensor, frame: Tensor, length: int) -> Tensor:
        """What the last `length` ticks up to each frame's own were told, [..., length, controls]; nothing pressed
        before an episode, and nobody leads the camera.
        """
        index, inside = self._ticks(frame, length)
        keys = self.actions[side.unsqueeze(-1), index] * inside
        return keys if self.camera is None else F.pad(keys, (0, self.camera.shape[-1]))

    def _ticks(self, frame: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """The last `length` frames up to each, and which of them are of its episode, [..., length, 1]."""
        index = frame.unsqueeze(-1) - torch.arange(length - 1, -1, -1, device=frame.device)
        return index.clamp(min=0), (index >= self.first[frame].unsqueeze(-1)).unsqueeze(-1)

    def clips(
        self,
        spec: WorldSpec,
        start: Tensor,
        frames: int,
        generator: torch.Generator,
        recoloured: LatentSet | None = None,
        worn: LatentSet | None = None,
        cut: bool = False,
    ) -> Drawn:
        """Clips of `frames` frames, the sink included, that go on from `start`; the sink is any earlier frame of
        the scene or, in some clips that begin while their scene is news, of the episode, as after a prompt switch.

        recoloured: the same drives in other colours. If given, what is to be predicted, and the prompts, come from
        there; the clips are histories at the moment of a prompt switch, or of colours that drifted part of that way.
        worn: the same drives as a world wears them out. If given, the history but for its sink is from there.
        cut: from some frame on, show another one of the clips, as where a player asks for another scene.
        """
        device, batch = self.latents.device, len(start)
        shown = recoloured or self

        def draw(*shape: int) -> Tensor:
            return torch.rand(shape, device=device, generator=generator)

        side = (draw(batch) * self.latents.shape[0]).long()
        # As at play, where the newest frame becomes the sink once a new scene is no longer news.
        begun = self.scene_first[start]
        earliest = torch.where((start - begun < FRESH) & (draw(batch) < SINK_OF_BEFORE), self.first[start], begun)
        sink = earliest + ((start - earliest + 1) * draw(batch)).long()
        run = start.unsqueeze(1) + torch.arange(frames - 1, device=device)
        index = torch.cat([sink.unsqueeze(1), run], 1)
        sides = side.unsqueeze(1).expand_as(index)
        since = torch.full_like(index, -1)  # frames since a cut
        if cut:
            at = CUT_FIRST + (draw(batch, 1) * (frames - CUT_FIRST - CUT_LAST + 1)).long()
            since = torch.arange(frames, device=device) - at
            index, sides = (torch.where(since < 0, here, here.roll(1, 0)) for here in (index, sides))
        told = self.history(sides, index, spec.generator.action_history)
        if self.camera is not None:
            told = self._led(self.camera, sides, index, told, draw)
        dragged = None
        if self.tracks is not None:
            dragged = self._dragged(self.tracks, sides, index, draw)
            dragged = dragged * (since != 0)[:, :, None, None, None]  # nothing comes from before a cut
            told = self._with_hands_off(told, dragged, draw)
        scene = shown.scene[index]
        which = (draw(batch, 1) * CAPTIONS_PER_SCENE).long().expand_as(index)
        prompt = shown.prompts[shown.captions[scene, which]]
        renamed = torch.ones(batch, dtype=torch.bool, device=device) if recoloured else draw(batch) < 0.5
        clean_prompt = torch.where(renamed[:, None, None, None], prompt[:, -1:], prompt)
        clean = self.latents[sides, index].float()
        target = recoloured.latents[sides, index].float() if recoloured else clean
        if worn:
            clean = torch.cat([clean[:, :1], worn.latents[sides, index][:, 1:].float()], 1)
        if recoloured:
            switched = draw(batch, 1) < SWITCH
            on_the_way = torch.where(draw(batch, 1) < AT_ONCE, 1.0, draw(batch, 1))
            off = torch.where(switched, on_the_way, DRIFTED * draw(batch, 1)).expand(batch, frames).clone()
            # While a switch is news the sink still shows the colours of before it, see tick.py; then those of now.
            off[:, :1] = switched.float()
            clean = torch.lerp(target, clean, off[:, :, None, None, None])
            fresh = clean_fresh = switched.float().expand(batch, frames)
        else:
            new = self.scene_first[index] > self.first[index]
            fresh = ((new & (index - self.scene_first[index] < FRESH)) | ((since >= 0) & (since < FRESH))).float()
            told_anew = renamed.unsqueeze(1) & (scene != scene[:, -1:]) & (fresh > 0).any(1, keepdim=True)
            clean_fresh = torch.where(told_anew, 1.0, fresh)
        sigma, astray = torch.zeros(batch, frames, device=device), self.astray()[index].float()
        clip = Clip(clean, sigma, told, clean_prompt, prompt, clean_fresh, fresh, astray, dragged)
        return Drawn(clip, target, renamed, scene, self.blank[index].float() - astray, since == 0)

    def _led(self, camera: Tensor, side: Tensor, frame: Tensor, told: Tensor, draw: Callable[..., Tensor]) -> Tensor:
        """What clips are told where somebody leads the camera: in some, in others never, or from or up to some frame.

        frame: [batch, frames], the sink first. In some of them the keys are let go meanwhile: a player who leads the
        camera seldom holds the keys that would take it there, too.
        """
        batch, length = len(told), told.shape[2]
        tick, inside = self._ticks(frame, length)
        led = some_of_the_time(tick, frame, LED, LED_IN_PART, draw).unsqueeze(-1) & inside
        motion = camera[side.unsqueeze(-1), tick] * led
        alone = draw(batch, 1, 1, 1) < LED_WITHOUT_KEYS
        keys = told[..., : -camera.shape[-1]] * (1 - motion[..., :1] * alone)
        return torch.cat([keys, motion], -1)

    @property
    def longest(self) -> int:
        """Frames of the longest episode."""
        return int(self.episode.unique_consecutive(return_counts=True)[1].max())

    @property
    def separate(self) -> bool:
        """Whether there are several scenes, by their captions, and no episode goes from one to another."""
        several = (self.captions != self.captions[:1]).any()
        return bool(several) and torch.equal(self.scene_first, self.first)

    def _dragged(self, tracks: Tensor, side: Tensor, frame: Tensor, draw: Callable[..., Tensor]) -> Tensor:
        """What frames to be made are told where somebody leads points: a few of what is known, anew for every frame.

        Whether a point is led in the next frame, too, need not be learned: each frame is told of its own tick alone.
        """
        batch, (rows, columns) = len(frame), tracks.shape[-2:]
        led = some_of_the_time(frame.unsqueeze(2), frame, DRAGGED, DRAGGED_IN_PART, draw)
        points = torch.tensor(POINTS, device=frame.device)[(draw(batch, 1, 1) * len(POINTS)).long()]
        share = (led * points / (rows * columns))[..., None, None]
        chosen = draw(*frame.shape, 1, rows, columns) < share
        return tracks[side, frame].float() * chosen

    def _with_hands_off(self, told: Tensor, dragged: Tensor, draw: Callable[..., Tensor]) -> Tensor:
        """`told` without its keys, in some clips, in the ticks in which points are led: who drags seldom holds the keys
        that would bring it about, too.
        """
        history, keys = told.shape[2], self.actions.shape[-1]
        led = dragged[:, :, 0].flatten(2).amax(2)
        led = F.pad(led[:, 1:] * (draw(len(led), 1) < LED_WITHOUT_KEYS), (history - 1, 0)).unfold(1, history, 1)
        off = F.pad(led, (0, 0, 1, 0)).unsqueeze(-1)  # the sink is of another time
        return torch.cat([told[..., :keys] * (1 - off), told[..., keys:]], -1)

    def same_drives(self, other: LatentSet) -> bool:
        """Whether `other` shows the beginning of these drives, action by action."""
        count = other.actions.shape[1]
        return count <= self.actions.shape[1] and torch.equal(other.actions, self.actions[:, :count])


def load_latents(
    data: Path, spec: WorldSpec, codec: Codec, encode_prompts: Callable[[list[str]], Tensor], team: Team
) -> LatentSet:
    """Encode a recording once per encoder, shard by shard, shared among the team; the results are kept beside it."""
    dataset = Dataset(data)
    if tuple(dataset.info.actions) != spec.actions:
        raise DatasetError(f"{data} has actions {dataset.info.actions}, the world has {list(spec.actions)}")
    kept = [shard.with_suffix(f".{codec.code}.pt") for shard in dataset.shards]
    mine = [i for i, path in enumerate(kept) if not path.exists()][team.rank :: team.size]
    codec = codec.to(team.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    shown = tqdm(shards_of_frames(dataset, mine), total=len(mine), desc="encode", unit="shard", disable=not team.leads)
    for i, frames in zip(mine, shown, strict=True):
        write_whole(kept[i], partial(torch.save, _encode(frames, spec, codec, team.device)))
    team.wait_for_all()
    latents = torch.cat([torch.load(path, weights_only=True) for path in kept], 1)

    shards = range(len(dataset.shards))
    texts: dict[str, int] = {}
    captions: list[list[int]] = []
    scenes = []
    for shard in shards:
        scenes.append(torch.from_numpy(dataset.read(shard, "scene").astype(np.int64)) + len(captions))
        for facts in dataset.scenes(shard):
            said = [facts["captions"][i % len(facts["captions"])] for i in range(CAPTIONS_PER_SCENE)]
            captions.append([texts.setdefault(text, len(texts)) for text in said])
    said_texts = list(texts)
    prompts = torch.cat([encode_prompts(said_texts[i : i + 512]).float().cpu() for i in range(0, len(texts), 512)])

    action = torch.cat([torch.from_numpy(dataset.read(shard, "actions").astype(np.float32)) for shard in shards])
    episode = torch.cat([torch.from_numpy(dataset.read(shard, "episode").astype(np.int64)) for shard in shards])
    scene = torch.cat(scenes)
    first, scene_first = _first_of_run(episode), torch.maximum(_first_of_run(episode), _first_of_run(scene))
    sides = [action, action[:, _mirrored(spec)]][: len(latents)]
    return LatentSet(
        latents, torch.stack(sides), episode, first, scene, scene_first, torch.tensor(captions), prompts,
        out_of_view(dataset), without_looking(dataset),
        led_camera(dataset, spec.camera, len(latents)) if spec.camera else None,
        tracks_of(dataset, spec.tracks, spec, len(latents)) if spec.tracks else None,
    )  # fmt: skip


def out_of_view(dataset: Dataset) -> Tensor:
    """`LatentSet.blank` of a recording: what its fact `in_view` denies."""
    return _fact(dataset, IN_VIEW, 1.0) < 0.5


def without_looking(dataset: Dataset) -> Tensor:
    """`LatentSet.open_loop` of a recording."""
    return _fact(dataset, OPEN_LOOP, 1.0) > 0.5


def _fact(dataset: Dataset, name: str, untold: float) -> Tensor:
    """[frames] what the recording tells of this fact, or `untold`."""
    if name not in dataset.info.facts:
        return torch.full((len(dataset),), untold)
    column = dataset.info.facts.index(name)
    return torch.cat(
        [torch.from_numpy(dataset.read(shard, "facts")[:, column]) for shard in range(len(dataset.shards))]
    )


def led_camera(dataset: Dataset, units: CameraSpec, sides: int) -> Tensor:
    """`LatentSet.camera` of a recording."""
    motion = torch.from_numpy(camera_motion(dataset)) / torch.tensor([1, units.move, units.move, units.turn])
    return torch.stack([motion, motion * torch.tensor([1, 1, -1, -1])][:sides])


def tracks_of(dataset: Dataset, units: DragSpec, spec: WorldSpec, sides: int) -> Tensor:
    """`LatentSet.tracks` of a recording; what moved faster than anything can be dragged counts as not known."""
    moved = torch.from_numpy(picture_motion(dataset, spec.codec.down)).permute(0, 3, 1, 2) / units.pixels
    known = (moved.abs() <= 1).all(1, keepdim=True)  # which NaN is not
    tracks = torch.cat([known.half(), torch.where(known, moved, 0)], 1)
    tracks = F.pad(tracks, (0, 0, 0, spec.latent_shape[1] - tracks.shape[2]))
    mirrored = tracks.flip(3) * torch.tensor([1, 1, -1]).half()[:, None, None] if sides > 1 else tracks
    return torch.stack([tracks, mirrored][:sides])


def some_of_the_time(tick: Tensor, frame: Tensor, always: float, in_part: float, draw: Callable[..., Tensor]) -> Tensor:
    """Which ticks of clips somebody leads, bool like `tick`: in a share of the clips all of them, in another those from
    or up to some frame.

    tick: [batch, frames, ticks]. frame: [batch, frames], the sink first.
    """
    kind, from_here, where = draw(3, len(frame), 1, 1)
    change = frame[:, 1:2, None] + (where * frame.shape[1]).long()
    now = torch.where(from_here < 0.5, tick >= change, tick < change)
    return (kind < always) | (now & (kind < always + in_part))


def _first_of_run(value: Tensor) -> Tensor:
    """For every frame the first of the frames in a row that share its value."""
    begins = torch.cat([torch.ones(1, dtype=torch.bool), value[1:] != value[:-1]])
    return torch.cummax(torch.where(begins, torch.arange(len(value)), 0), 0).values


def _mirrored(spec: WorldSpec) -> list[int]:
    """For every action the one that takes its place in a mirrored picture."""
    partner = dict(spec.mirror) | {b: a for a, b in spec.mirror}
    return [spec.actions.index(partner.get(name, name)) for name in spec.actions]


@torch.no_grad()
def _encode(frames: Tensor, spec: WorldSpec, codec: Codec, device: torch.device) -> Tensor:
    """Latents of one shard, [sides, frames, channels, rows, columns] float16."""
    sides = []
    for side in range(2 if spec.mirror else 1):
        parts = []
        for begin in range(0, len(frames), 256):
            pictures = as_input(frames[begin : begin + 256].to(device))
            with torch.autocast(device.type, torch.bfloat16):
                parts.append(codec.encode(pictures.flip(3) if side else pictures).half().cpu())
        sides.append(torch.cat(parts))
    return torch.stack(sides)
