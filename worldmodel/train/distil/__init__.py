"""Ways to make a student of a trained world: one file each, and one line here.

All share the loop, the recording and the folder of `worldloop train distil`; see setting.py for what a method is given
and must do. The same methods for imported checkpoints (`worldloop train distil-checkpoint`) are in imported/.
"""

from __future__ import annotations

from dataclasses import dataclass

CAUSAL_FORCING = "github.com/thu-ml/Causal-Forcing"


@dataclass(frozen=True)
class MethodEntry:
    """where: module in this package, and what in it makes the method of a Setting.

    taught: whether there is a teacher, as which a student of its size begins.
    imported: like where, for imported checkpoints, if the method is there for them.
    """

    what: str
    paper: str
    where: tuple[str, str]
    taught: bool = True
    imported: tuple[str, str] | None = None


METHODS: dict[str, MethodEntry] = {
    "dmd": MethodEntry("teacher against critic, recorded histories", "arXiv:2405.14867", ("dmd", "dmd")),
    "self-forcing": MethodEntry(
        "the same on roll-outs as at play",
        "arXiv:2506.08009",
        ("self_forcing", "self_forcing"),
        imported=("self_forcing", "self_forcing"),
    ),
    "rolling-forcing": MethodEntry(
        "on windows in flight, half of them frame by frame",
        "arXiv:2509.25161",
        ("rolling_forcing", "rolling_forcing"),
        imported=("rolling_forcing", "rolling_forcing"),
    ),
    "reward-forcing": MethodEntry(
        "roll-outs count by the reward for motion", "arXiv:2512.04678", ("reward_forcing", "reward_forcing")
    ),
    "reliability": MethodEntry(
        "and places by how much the judge's eye minds them", "Stream-R1", ("reliability", "reliability")
    ),
    "long-tuning": MethodEntry(
        "on streams that go on from step to step",
        "arXiv:2509.22622",
        ("long_tuning", "long_tuning"),
        imported=("long_tuning", "long_tuning"),
    ),
    "context": MethodEntry("from a teacher that remembers more", "Context Forcing", ("context", "context")),
    "ode": MethodEntry("jump where the teacher's flow leads", CAUSAL_FORCING, ("ode", "OdeInitialisation")),
    "consistency": MethodEntry("neighbours on the flow, one picture", CAUSAL_FORCING, ("consistency", "Consistency")),
    "on-policy": MethodEntry(
        "learn the better of one's own roll-outs, leave the worse", "Astrolabe, KVPO, AFD", ("on_policy", "OnPolicy")
    ),
    "teacher-forcing": MethodEntry("no teacher: the recording alone", "", ("recorded", "teacher_forcing"), False),
    "noisy-history": MethodEntry("no teacher: histories with errors", "", ("recorded", "noisy_history"), False),
}
