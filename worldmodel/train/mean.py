"""Average the weights of two trainings of which one went on from the other (model soup, arXiv:2203.05482).

    python -m worldmodel.train.mean WORLD.safetensors BEFORE.safetensors SHARE OUT.safetensors

SHARE: of the weights before, 0 to 1.
"""

from __future__ import annotations

import sys
from pathlib import Path

from safetensors.torch import load_file, save_file

from worldmodel.errors import CheckpointError, WorldloopError
from worldmodel.train.run import CODE, known_code, write_whole


def average(weights: Path, before: Path, share: float, out: Path) -> None:
    """Write the mean of both as float32, with the code of the codec that both were trained with."""
    if not 0 <= share <= 1:
        raise CheckpointError(f"a share lies within 0..1: got {share:g}")
    for path in (weights, before):
        if not path.exists():
            raise CheckpointError(f"{path} does not exist")
    ours, theirs = load_file(weights), load_file(before)
    if {name: tensor.shape for name, tensor in ours.items()} != {name: t.shape for name, t in theirs.items()}:
        raise CheckpointError(f"{weights} and {before} are weights of different networks")
    code = known_code(weights)
    if code != known_code(before):
        raise CheckpointError(f"{weights} and {before} were trained with different codecs")
    mean = {name: tensor.float().lerp(theirs[name].float(), share) for name, tensor in ours.items()}
    write_whole(out, lambda path: save_file(mean, path, {CODE: code} if code else None))


if __name__ == "__main__":
    if len(sys.argv) != 5:
        sys.exit("usage: python -m worldmodel.train.mean WORLD.safetensors BEFORE.safetensors SHARE OUT.safetensors")
    try:
        average(Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]), Path(sys.argv[4]))
    except (WorldloopError, ValueError) as error:
        sys.exit(f"worldmodel.train.mean: {error}")
