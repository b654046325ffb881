#!/bin/sh
# Make doom.world from nothing, on a machine with two CPU cores; needs pip install '.[train]' and about 10 GB.
# The figures of each run are in docs/worlds.md.
#   docs/worlds/doom.sh [DIR]     DIR: data and run folder, default runs/
set -eu
dir=${1:-runs}
here=$(cd "$(dirname "$0")" && pwd)
export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive  # two one-thread processes beat two threads
train="torchrun --nproc-per-node 2 -m runtime.cli train"

worldloop record doom --frames 120000 --seed 1 --out "$dir/data-doom" --resume
$train codec --data "$dir/data-doom" --out "$dir/doom" --minutes 54 --batch 12 --frames 20000 \
  --set codec.channels=24 --set codec.equivariant=True --set generator.depth=4 --set generator.action_history=16 \
  --set "generator.reach=(2,3)" --resume
$train world --data "$dir/data-doom" --out "$dir/doom" --minutes 65 --batch 3 --resume
worldloop export "$dir/doom" --card "$here/doom.toml" --out "$dir/doom.world"
worldloop eval "$dir/doom.world" --ticks 500 --rollouts 16 --report "$dir/doom-report"
