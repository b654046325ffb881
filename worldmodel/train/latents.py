"""A recording as the generator trains on it: latents of every frame, actions with history, captions as prompt embeddings."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from worldmodel.codec.small import Codec
from worldmodel.errors import DatasetError
from worldmodel.spec import WorldSpec
from worldmodel.train.dataset import Dataset
from worldmodel.train.frames import as_input, shards_of_frames
from worldmodel.transformer.clip import Clip

CAPTIONS_PER_SCENE = 4


@dataclass(frozen=True)
class LatentSet:
    """latents: [sides, frames, channels, rows, columns] float16; side 1, if there, is the mirrored picture
    actions: [sides, frames, action_dim] float32, what led to each frame
    episode, first: [frames] int64, the frame's episode and that episode's first frame
    scene: [frames] int64; captions: [scenes, CAPTIONS_PER_SCENE] int64, rows of prompts
    prompts: [captions, prompt_tokens, prompt_dim] float32
    """

    latents: Tensor
    actions: Tensor
    episode: Tensor
    first: Tensor
    scene: Tensor
    captions: Tensor
    prompts: Tensor

    def to(self, device: torch.device) -> LatentSet:
        return LatentSet(**{k: v.to(device) for k, v in vars(self).items()})

    def starts(self, length: int) -> Tensor:
        """Every frame from which `length` frames of one episode follow."""
        last = self.episode.roll(-(length - 1))
        ok = (last == self.episode) & (torch.arange(len(last), device=last.device) <= len(last) - length)
        return ok.nonzero().squeeze(1)

    def history(self, side: Tensor, frame: Tensor, length: int) -> Tensor:
        """The last `length` actions up to each frame's own, [..., length, action_dim]; nothing pressed before an episode."""
        index = frame.unsqueeze(-1) - torch.arange(length - 1, -1, -1, device=frame.device)
        inside = index >= self.first[frame].unsqueeze(-1)
        return self.actions[side.unsqueeze(-1), index.clamp(min=0)] * inside.unsqueeze(-1)

    def clips(
        self, spec: WorldSpec, start: Tensor, frames: int, generator: torch.Generator
    ) -> tuple[Clip, Tensor, Tensor]:
        """Clips of `frames` frames, the sink included, that go on from `start`; the sink is any earlier frame of the episode.

        Returns the clips, whether history was renamed to the newest prompt (as KV-recache does; [batch] bool), and the
        scene of every frame, [batch, frames].
        """
        device, batch = self.latents.device, len(start)

        def draw(*shape: int) -> Tensor:
            return torch.rand(shape, device=device, generator=generator)

        side = (draw(batch) * self.latents.shape[0]).long()
        sink = self.first[start] + ((start - self.first[start] + 1) * draw(batch)).long()
        run = start.unsqueeze(1) + torch.arange(frames - 1, device=device)
        index = torch.cat([sink.unsqueeze(1), run], 1)
        sides = side.unsqueeze(1).expand_as(index)
        told = self.history(sides, index, spec.generator.action_history)
        scene = self.scene[index]
        which = (draw(batch, 1) * CAPTIONS_PER_SCENE).long().expand_as(index)
        prompt = self.prompts[self.captions[scene, which]]
        renamed = draw(batch) < 0.5
        clean_prompt = torch.where(renamed[:, None, None, None], prompt[:, -1:], prompt)
        latents = self.latents[sides, index].float()
        sigma = torch.zeros(batch, frames, device=device)
        return Clip(latents, sigma, told, clean_prompt, prompt), renamed, scene


def load_latents(
    data: Path, spec: WorldSpec, codec: Codec, encode_prompts: Callable[[list[str]], Tensor], device: torch.device
) -> LatentSet:
    """Encode a recording once per codec; the result is kept beside it and read back the next time."""
    dataset = Dataset(data)
    if tuple(dataset.info.actions) != spec.actions:
        raise DatasetError(f"{data} has actions {dataset.info.actions}, the world has {list(spec.actions)}")
    key = hashlib.sha256(b"".join(p.detach().cpu().numpy().tobytes() for p in codec.parameters())).hexdigest()[:12]
    kept = data / f"latents-{key}.pt"
    if kept.exists():
        loaded = torch.load(kept, weights_only=True, mmap=True)
    else:
        loaded = _encode(dataset, spec, codec.to(device), device)
        torch.save(loaded, kept)
    texts: list[str] = json.loads(bytes(loaded.pop("texts").tolist()))
    prompts = torch.cat([encode_prompts(texts[i : i + 512]).float().cpu() for i in range(0, len(texts), 512)])
    return LatentSet(**loaded, prompts=prompts)


@torch.no_grad()
def _encode(dataset: Dataset, spec: WorldSpec, codec: Codec, device: torch.device) -> dict[str, Tensor]:
    sides = 2 if spec.mirror else 1
    total = len(dataset)
    latents = torch.empty(sides, total, *spec.latent_shape, dtype=torch.float16)
    actions, episodes, scenes = [], [], []
    texts: dict[str, int] = {}
    captions: list[list[int]] = []
    at = 0
    for shard, frames in enumerate(
        tqdm(shards_of_frames(dataset), total=len(dataset.shards), desc="encode", unit="shard")
    ):
        base = len(captions)
        for scene in dataset.scenes(shard):
            said = [scene["captions"][i % len(scene["captions"])] for i in range(CAPTIONS_PER_SCENE)]
            captions.append([texts.setdefault(text, len(texts)) for text in said])
        for begin in range(0, len(frames), 256):
            pictures = as_input(frames[begin : begin + 256].to(device))
            with torch.autocast(device.type, torch.bfloat16):
                for side in range(sides):
                    latent = codec.encode(pictures.flip(3) if side else pictures)
                    latents[side, at + begin : at + begin + len(latent)] = latent.half().cpu()
        at += len(frames)
        actions.append(torch.from_numpy(dataset.read(shard, "actions").astype(np.float32)))
        episodes.append(torch.from_numpy(dataset.read(shard, "episode").astype(np.int64)))
        scenes.append(torch.from_numpy(dataset.read(shard, "scene").astype(np.int64)) + base)
    action = torch.cat(actions)
    mirrored = list(range(len(spec.actions)))
    for a, b in spec.mirror:
        i, j = spec.actions.index(a), spec.actions.index(b)
        mirrored[i], mirrored[j] = j, i
    episode = torch.cat(episodes)
    new = torch.cat([torch.ones(1, dtype=torch.bool), episode[1:] != episode[:-1]])
    first = torch.cummax(torch.where(new, torch.arange(total), 0), 0).values
    return {
        "latents": latents,
        "actions": torch.stack([action, action[:, mirrored]][:sides]),
        "episode": episode,
        "first": first,
        "scene": torch.cat(scenes),
        "captions": torch.tensor(captions),
        "texts": torch.tensor(list(json.dumps(list(texts)).encode()), dtype=torch.uint8),
    }
