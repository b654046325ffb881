#!/bin/sh
# Make doom.world from nothing; needs pip install '.[train]' and about 20 GB. Two CPU cores take days, a GPU an hour.
#   docs/worlds/doom.sh [DIR]     DIR: data and run folder, default runs/
set -eu
dir=${1:-runs}
here=$(cd "$(dirname "$0")" && pwd)
export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive
train="torchrun --nproc-per-node 2 -m runtime.cli train"

worldloop record doom --frames 400000 --seed 1 --out "$dir/data-doom" --resume
$train codec --data "$dir/data-doom" --out "$dir/doom" --minutes 60 --batch 16 --frames 60000 --set codec.channels=24 --resume
$train world --data "$dir/data-doom" --out "$dir/doom" --minutes 600 --batch 4 --resume
worldloop export "$dir/doom" --card "$here/doom.toml" --out "$dir/doom.world"
worldloop eval "$dir/doom.world" --ticks 500 --rollouts 16 --report "$dir/doom-report"
