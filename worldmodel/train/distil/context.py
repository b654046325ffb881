"""Context distillation (Context Forcing): the teacher remembers more than the student can, and what it knows from there
is what the student is drawn to.

The teacher is another run with a longer `window`; samples are judged with all of that history, recorded and own.
"""

from __future__ import annotations

from worldmodel.errors import SpecError
from worldmodel.train.distil.dmd import Matching
from worldmodel.train.distil.roll_out import TICKS, Played
from worldmodel.train.distil.setting import Setting


def context(setting: Setting) -> Matching:
    """DMD on roll-outs that leave the teacher's recorded history behind."""
    windows = [world.spec.window for world in (setting.student, setting.teacher)]
    if windows[0] >= windows[1]:
        raise SpecError(
            f"context wants a teacher with a longer window: got {windows[1]}, the student has {windows[0]}; "
            "train one with 'worldloop train codec … --set window=12', or give the student a shorter one"
        )
    return Matching(setting, Played(setting, ticks=max(TICKS, windows[1] + 4)))
