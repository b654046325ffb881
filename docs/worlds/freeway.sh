#!/bin/sh
# Make freeway.world, of Atari's Freeway, from nothing; needs pip install '.[train,games]' and about 4 GB. The ROM comes
# with ale-py; the world shows its pictures, so it is not shipped.
#   docs/worlds/freeway.sh [DIR]     DIR: data and run folder, default runs/
#   SMALL=1 docs/worlds/freeway.sh   in minutes, to see that all of it works: the world knows little more than its ground
set -eu
dir=${1:-runs}
here=$(cd "$(dirname "$0")" && pwd)
if [ "${SMALL:-}" ]; then frames=2000 codec=1 world=1 heads=0.5; else frames=120000 codec=40 world=240 heads=15; fi
export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive  # two one-thread processes beat two threads
train="torchrun --nproc-per-node 2 -m runtime.cli train"

worldloop record ALE/Freeway-v5 --size 96 --frames $frames --seed 1 --out "$dir/data-freeway" --resume
$train codec --data "$dir/data-freeway" --out "$dir/freeway" --minutes $codec --batch 24 --frames 60000 \
  --set generator.depth=4 --set generator.action_history=16 --resume
$train world --data "$dir/data-freeway" --out "$dir/freeway" --minutes $world --batch 4 --resume
$train heads --data "$dir/data-freeway" --out "$dir/freeway" --minutes $heads --resume
worldloop export "$dir/freeway" --card "$here/freeway.toml" --out "$dir/freeway.world"
worldloop play "$dir/freeway.world" --headless --ticks 150 --video "$dir/freeway.mp4"
