#!/bin/sh
# Make racer.world on a machine with two CPU cores; needs pip install '.[train]' and about 4 GB.
# The figures of each run are in docs/worlds.md.
#   docs/worlds/racer.sh [DIR [FROM]]
#     DIR: data and run folder, default runs/
#     FROM: a folder with spec, codec and weights to go on from, as docs/worlds/racer: 82 minutes of training.
#           Without it everything begins from nothing: 440 minutes.
set -eu
dir=${1:-runs}
from=${2:-}
here=$(cd "$(dirname "$0")" && pwd)
export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive  # two one-thread processes beat two threads
train="torchrun --nproc-per-node 2 -m runtime.cli train"

worldloop record racer --size 96 --frames 120000 --seed 17 --out "$dir/data-racer" --resume
worldloop record racer --size 96 --frames 60000 --seed 17 --palette 1 --out "$dir/data-racer-recoloured" --resume
worldloop record racer --size 96 --frames 72000 --seed 17 --worn --out "$dir/data-racer-worn" --resume
if [ "$from" ]; then
  mkdir -p "$dir/racer"
  cp "$from/spec.json" "$from/codec.safetensors" "$dir/racer/"
  begin="--init $from/world.safetensors --minutes 82"
else
  $train codec --data "$dir/data-racer" --out "$dir/racer" --minutes 50 --batch 24 --frames 60000 \
    --set generator.depth=4 --set generator.action_history=96 --set "generator.reach=(1,1)" \
    --set generator.slow=8 --set generator.prompt_skip=True --resume
  begin="--minutes 390"
fi
$train world --data "$dir/data-racer" --out "$dir/racer" $begin --batch 4 \
  --recoloured "$dir/data-racer-recoloured" --worn "$dir/data-racer-worn" --resume
weights="$dir/racer/world.safetensors"
if [ "$from" ]; then  # next frames are a quarter of a decibel better for it
  weights="$dir/racer/mean.safetensors"
  python -m worldmodel.train.mean "$dir/racer/world.safetensors" "$from/world.safetensors" 0.2 "$weights"
fi
worldloop train heads --data "$dir/data-racer" --out "$dir/racer" --minutes 4 --resume
worldloop export "$dir/racer" --weights "$weights" --card "$here/racer.toml" --sigmas "1 0.3" --out "$dir/racer.world"
worldloop eval "$dir/racer.world" --ticks 2000 --rollouts 16 --report "$dir/racer-report"
