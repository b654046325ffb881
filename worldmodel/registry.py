"""Everything that can be combined into a world, as plain data: caches, schedules, conditions, codecs, families.

A new sink, schedule, condition, codec or family is one new file and one line here (families: in families/family.py;
methods of distillation: in train/distil/__init__.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from worldmodel.cache.base import Cache
from worldmodel.cache.ema_sink import EmaSink
from worldmodel.cache.rolling_sink import RollingSink
from worldmodel.cache.sink_window import RelativeSinkWindow, SinkWindow
from worldmodel.errors import SpecError
from worldmodel.families.family import FAMILIES
from worldmodel.schedule.few_step import FewStep, diagonal
from worldmodel.schedule.moving_buffer import MovingBuffer
from worldmodel.schedule.plan import FlowTable, Schedule
from worldmodel.schedule.rolling import Rolling
from worldmodel.schedule.sampler import check_combination
from worldmodel.schedule.stream_batch import StreamBatch
from worldmodel.train.distil import METHODS

TABLE = FlowTable(shift=5.0)
FOUR, FIVE = TABLE.warp((1000, 750, 500, 250)), TABLE.warp((1000, 800, 600, 400, 200))
OWN_CODEC = ("diamond", "open_oasis", "waypoint")  # families that bring one, or need none
NATIVE, WAN = ("native worlds",), ("every Wan family",)
OURS = "MIT (written anew from the paper)"


@dataclass(frozen=True)
class CacheEntry:
    """A cache technique in its published sizes."""

    what: str
    paper: str
    published: Cache


@dataclass(frozen=True)
class ScheduleEntry:
    """A schedule in its published levels."""

    what: str
    paper: str
    published: Schedule
    chunk: int = 3  # latent frames of a block


@dataclass(frozen=True)
class Entry:
    """Anything else."""

    what: str
    paper: str
    licence: str
    combines_with: tuple[str, ...]


CACHES: dict[str, CacheEntry] = {
    "window": CacheEntry("the latest frames", "arXiv:2506.08009", SinkWindow(window=21, chunk=3)),
    "sink_window": CacheEntry("first frames and latest, absolute", "arXiv:2509.22622", SinkWindow(12, 3, 3)),
    "relative_sink": CacheEntry("the same, counted in the cache", "arXiv:2509.22622", RelativeSinkWindow(12, 3, 3)),
    "ema_sink": CacheEntry("sink averages what leaves", "arXiv:2512.04678", EmaSink(9, 3, 3)),
    "rolling_sink": CacheEntry("sink right before the recent", "arXiv:2509.25161", RollingSink(24, 3, 3)),
}

SCHEDULES: dict[str, ScheduleEntry] = {
    "chunk_wise": ScheduleEntry("block by block, four steps", "arXiv:2506.08009", FewStep(FOUR)),
    "frame_wise_2": ScheduleEntry(
        "frame by frame, two steps, the first in four",
        "github.com/thu-ml/Causal-Forcing",
        FewStep(TABLE.warp((1000, 500)), (FOUR,)),
        chunk=1,
    ),
    "frame_wise_1": ScheduleEntry(
        "frame by frame, one step, the first in four",
        "github.com/thu-ml/Causal-Forcing",
        FewStep(TABLE.warp((1000,)), (FOUR,)),
        chunk=1,
    ),
    "rolling": ScheduleEntry("five blocks in flight, one pass a tick", "arXiv:2509.25161", Rolling(FIVE)),
    "diagonal": ScheduleEntry(
        "fewer steps block by block, no commit pass",
        "github.com/Sphere-AI-Lab/diagdistill",
        diagonal(
            TABLE, ((1000, 933, 733, FOUR[-1].timestep), (1000, 933, FOUR[-1].timestep), (1000, FOUR[-1].timestep))
        ),
    ),
    "moving_buffer": ScheduleEntry("chunks inside noise segments", "arXiv:2507.03745", MovingBuffer(chunks=4)),
    "stream_batch": ScheduleEntry("blocks share a pass, unseen", "arXiv:2312.12491", StreamBatch(FOUR), chunk=1),
}

CONDITIONS: dict[str, Entry] = {
    "text": Entry("prompt by cross-attention, switched by recache", "arXiv:2503.20314", OURS, ("every Wan family",)),
    "guidance": Entry("classifier-free guidance, caches of its own", "arXiv:2207.12598", OURS, ("every Wan family",)),
    "image": Entry(
        "first frame as image tokens and channels", "arXiv:2503.20314", OURS, ("matrix_game2", "lingbot_world")
    ),
    "keyboard_mouse": Entry(
        "rows of keys and mouse, attended over time", "github.com/SkyworkAI/Matrix-Game", OURS, ("matrix_game2",)
    ),
    "camera": Entry("camera path as projective positions", "github.com/shengshu-ai/minWM", OURS, ("minwm",)),
    "camera_motion": Entry("the camera's own motion, from the game's poses", "", OURS, NATIVE),
    "drag": Entry("points dragged with the mouse, from the game's geometry", "", OURS, NATIVE),
    "rays": Entry("camera path as a map of rays", "arXiv:2601.20540", OURS, ("lingbot_world",)),
    "tracks": Entry("points drawn with the mouse, as channels", "arXiv:2511.01266", OURS, ("motion_stream",)),
}

CODECS: dict[str, Entry] = {
    "small": Entry("the native worlds' own, trained by `worldloop train codec`", "", "MIT", ("native worlds",)),
    "wan_vae": Entry(
        "Wan 2.1's causal video autoencoder, streaming", "arXiv:2503.20314", "Apache-2.0", ("every Wan family",)
    ),
    "taehv": Entry(
        "tiny, for previews: four to six times faster", "github.com/madebyollin/taehv", "MIT", ("every Wan family",)
    ),
}


def listing() -> dict[str, list[dict[str, Any]]]:
    """All of it, for `worldloop list`."""
    return {
        "caches": [_cache(name, entry) for name, entry in CACHES.items()],
        "schedules": [_schedule(name, entry) for name, entry in SCHEDULES.items()],
        "conditions": [_other(name, entry) for name, entry in CONDITIONS.items()],
        "codecs": [_other(name, entry) for name, entry in CODECS.items()],
        "families": [
            {
                "name": name,
                "what": family.title,
                "paper": family.source,
                "licence": family.licence,
                "combines_with": ["its own codec"] if name in OWN_CODEC else ["wan_vae", "taehv"],
            }
            for name, family in FAMILIES.items()
        ],
        "distillations": [
            _other(name, Entry(entry.what, entry.paper, OURS, NATIVE + (WAN if entry.imported else ())))
            for name, entry in METHODS.items()
        ],
    }


def refusal(cache: Cache, schedule: Schedule, fused: bool = False) -> str | None:
    """Why a cache and a schedule cannot be combined; None if they can."""
    try:
        check_combination(cache, schedule, fused)
    except SpecError as error:
        return str(error)
    return None


def _cache(name: str, entry: CacheEntry) -> dict[str, Any]:
    able = [other for other, schedule in SCHEDULES.items() if not refusal(entry.published, schedule.published)]
    return {"name": name, "what": entry.what, "paper": entry.paper, "licence": OURS, "frames": entry.published.slots,
            "combines_with": able}  # fmt: skip


def _schedule(name: str, entry: ScheduleEntry) -> dict[str, Any]:
    """NFE and work are of one tick in the steady state, which makes one block of `chunk` latent frames."""
    schedule = entry.published
    plan = schedule.plan(schedule.steady_from)
    commits = schedule.commit == "pass"
    able = [other for other, cache in CACHES.items() if not refusal(cache.published, schedule)]
    return {
        "name": name,
        "what": entry.what,
        "paper": entry.paper,
        "licence": OURS,
        "chunk_frames": entry.chunk,
        "nfe": plan.passes + commits,
        "nfe_fused": plan.passes,
        "work_frames": entry.chunk * (sum(len(row) for row in plan.rows) + commits),
        "response_ticks": plan.lanes - 1,
        "combines_with": able,
    }


def _other(name: str, entry: Entry) -> dict[str, Any]:
    return {"name": name, "what": entry.what, "paper": entry.paper, "licence": entry.licence,
            "combines_with": list(entry.combines_with)}  # fmt: skip
