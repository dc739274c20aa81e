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
# DEVICE=cpu MINUTES=0.05 CLIPS=128 is a rehearsal.
set -euo pipefail
out=$1 minutes=$2 device=${DEVICE:-cuda} state=${STATE:-/tmp/s2flow-tiny}
export PYTHONUNBUFFERED=1 PYTHONPATH=$PWD
if compgen -G ".whl/*.whl" >/dev/null; then
  python3 -m pip install -q --no-index --no-deps --no-compile --upgrade --target /tmp/site .whl/*.whl
  PYTHONPATH=/tmp/site:$PYTHONPATH
fi
mkdir -p "$state" "$out"
train="python3 -m s2flow.backbones.tiny.train tiny --state $state --device $device --bf16"
if [ -e s2flow/backbones/tiny/weights/tiny/card.json ] && [ ! -e "$state/flow.pt" ]; then
  train="$train --init"
fi
$train --minutes "$minutes" --vae-steps "${VAE_STEPS:-3000}" --save-seconds 60 ${COMPILE---compile} ||
  $train --minutes "$minutes" --vae-steps "${VAE_STEPS:-3000}" --save-seconds 60
$train --export "$state/tree/backbones/tiny/weights/tiny"
cp "$state/log.jsonl" "$out/tiny_training.jsonl"
if [ ! -e s2flow/scorers/weights/tiny.safetensors ]; then
  python3 -m s2flow.scorers.oracle tiny --device "$device" --clips "${CLIPS:-200000}"
fi
mkdir -p "$state/tree/scorers/weights"
cp s2flow/scorers/weights/tiny.* "$state/tree/scorers/weights/"
tar -C "$state/tree" -czf "$out/tiny.tar.gz" .
