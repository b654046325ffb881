"""Self Forcing: DMD on roll-outs with cache and schedule as at play (arXiv:2506.08009)."""

from __future__ import annotations

from worldmodel.train.distil.dmd import Matching
from worldmodel.train.distil.roll_out import Played
from worldmodel.train.distil.setting import Setting


def self_forcing(setting: Setting) -> Matching:
    """DMD on the student's own frames, one by one."""
    return Matching(setting, Played(setting))
