#!/usr/bin/env bash
# Train the embedded `tiny` backbone and its oracle on a GPU, in runs as short as a lent machine allows.
#
#   bash experiments/train_on_gpu.sh OUT MINUTES       # MINUTES of this call; STEPS in all (default 40000)
#
# Call it again and it goes on from STATE (default /tmp/s2flow-tiny) while that folder lives; from elsewhere,
# with INIT=FOLDER, from exported weights. Whatever ends it, OUT/tiny.tar.gz is written, which is unpacked with
#   tar -xzf OUT/tiny.tar.gz -C s2flow
# and holds the weights (float16, a WanPipeline folder), the oracle if there was time, and the log.
# Python packages missing on that machine travel as wheels in .whl/ (at least diffusers):
#   pip download --no-deps --only-binary=:all: --python-version 3.12 -d .whl diffusers==0.42.1
# Rehearsal on a CPU: SIZE=micro DEVICE=cpu COMPILE= STEPS=4 bash experiments/train_on_gpu.sh OUT 1
set -euo pipefail
out=$1 minutes=$2 size=${SIZE:-tiny} device=${DEVICE:-cuda} state=${STATE:-/tmp/s2flow-tiny}
export PYTHONUNBUFFERED=1 PYTHONPATH=$PWD
if compgen -G ".whl/*.whl" >/dev/null; then
  python3 -m pip install -q --no-index --no-deps --no-compile --upgrade --target /tmp/site .whl/*.whl
  PYTHONPATH=/tmp/site:$PYTHONPATH
fi
mkdir -p "$state" "$out"
pack() {
  mkdir -p "$state/tree/embedded/weights/$size" "$state/tree/scorers/weights"
  cp -r "$state"/weights/. "$state/tree/embedded/weights/$size/" || echo "no weights yet"
  cp "$state/log.jsonl" "$out/${size}_training.jsonl" || echo "no training log yet"
  cp s2flow/scorers/weights/$size.* "$state/tree/scorers/weights/" || echo "no oracle yet"
  tar -C "$state/tree" -czf "$out/$size.tar.gz" .
}
trap pack EXIT
if [ ! -e "$state/vae" ]; then
  python3 -m s2flow.training autoencoder "$size" --out "$state" --device "$device" --steps "${VAE_STEPS:-3000}"
fi
timeout -s TERM "${minutes}m" python3 -m s2flow.training flow "$size" --state "$state" --vae "$state" \
  --steps "${STEPS:-40000}" --device "$device" --sheet-minutes 0 ${INIT:+--init "$INIT"} ${COMPILE---compile} ||
  echo "training ended with status $?"
pack
if [ ! -e "s2flow/scorers/weights/$size.safetensors" ]; then
  python3 -m s2flow.training oracle "$size" --device "$device" --clips "${CLIPS:-200000}"
fi
