#!/usr/bin/env bash
# Train the embedded `tiny` backbone and its oracle on a GPU, in runs as short as a lent machine allows.
#
#   bash experiments/train_on_gpu.sh OUT MINUTES       # MINUTES: training time in all, over every call
#
# Call it again, with more MINUTES, and it goes on: from STATE (default /tmp/s2flow-tiny) while that
# folder lives, else from the weights in the package. Writes OUT/tiny.tar.gz, which is unpacked with
#   tar -xzf OUT/tiny.tar.gz -C s2flow
# and holds the weights (float16, a WanPipeline folder), the oracle, and the log.
# Python packages missing on that machine travel as wheels in .whl/ (at least diffusers):
#   pip download --no-deps --only-binary=:all: --python-version 3.12 -d .whl diffusers==0.42.1
# Rehearsal on a CPU: SIZE=micro DEVICE=cpu COMPILE= bash experiments/train_on_gpu.sh OUT 0.1
set -euo pipefail
out=$1 minutes=$2 size=${SIZE:-tiny} device=${DEVICE:-cuda} state=${STATE:-/tmp/s2flow-tiny}
export PYTHONUNBUFFERED=1 PYTHONPATH=$PWD
if compgen -G ".whl/*.whl" >/dev/null; then
  python3 -m pip install -q --no-index --no-deps --no-compile --upgrade --target /tmp/site .whl/*.whl
  PYTHONPATH=/tmp/site:$PYTHONPATH
fi
mkdir -p "$state" "$out"
train="python3 -m s2flow.backbones.tiny.train $size --state $state --device $device --bf16"
if [ -e s2flow/backbones/tiny/weights/$size/card.json ] && [ ! -e "$state/flow.pt" ]; then
  train="$train --init"
fi
$train --minutes "$minutes" --vae-steps "${VAE_STEPS:-3000}" --save-seconds 60 ${COMPILE---compile} ||
  $train --minutes "$minutes" --vae-steps "${VAE_STEPS:-3000}" --save-seconds 60
$train --export "$state/tree/backbones/tiny/weights/$size"
cp "$state/log.jsonl" "$out/${size}_training.jsonl" || echo "no training log yet: fewer than 50 steps"
if [ ! -e s2flow/scorers/weights/$size.safetensors ]; then
  python3 -m s2flow.scorers.oracle "$size" --device "$device" --clips "${CLIPS:-200000}"
fi
mkdir -p "$state/tree/scorers/weights"
cp s2flow/scorers/weights/$size.* "$state/tree/scorers/weights/"
tar -C "$state/tree" -czf "$out/$size.tar.gz" .
