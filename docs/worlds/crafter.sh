#!/bin/sh
# Make crafter.world, of Danijar Hafner's Crafter (MIT), from nothing; needs pip install '.[train,games]' and about 4 GB.
#   docs/worlds/crafter.sh [DIR]     DIR: data and run folder, default runs/
#   SMALL=1 docs/worlds/crafter.sh   in minutes, to see that all of it works: the world knows little more than its ground
set -eu
dir=${1:-runs}
here=$(cd "$(dirname "$0")" && pwd)
if [ "${SMALL:-}" ]; then frames=2000 codec=1 world=1 heads=0.5; else frames=120000 codec=40 world=240 heads=15; fi
export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive  # two one-thread processes beat two threads
train="torchrun --nproc-per-node 2 -m runtime.cli train"

worldloop record crafter --size 96 --frames $frames --seed 1 --out "$dir/data-crafter" --resume
$train codec --data "$dir/data-crafter" --out "$dir/crafter" --minutes $codec --batch 24 --frames 60000 \
  --set generator.depth=4 --set generator.action_history=16 --resume
$train world --data "$dir/data-crafter" --out "$dir/crafter" --minutes $world --batch 4 --resume
$train heads --data "$dir/data-crafter" --out "$dir/crafter" --minutes $heads --resume
worldloop export "$dir/crafter" --card "$here/crafter.toml" --out "$dir/crafter.world"
worldloop play "$dir/crafter.world" --headless --ticks 150 --video "$dir/crafter.mp4"
