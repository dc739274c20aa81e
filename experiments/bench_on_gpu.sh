#!/usr/bin/env bash
# All GPU benchmarks, in calls as short as a lent machine allows (10 minutes each).
#
#   bash experiments/bench_on_gpu.sh OUT STAGE [MINUTES]
#       STAGE    attention | attention_lr | attention_hr | step | vae | pipeline | all
#       MINUTES  of this call (default 9); all shares them out: attention .4, step .3, vae .1, pipeline .2
#
# Small sizes come first, large ones as the time allows; what is left out is named in the file. Files are
# written after every measurement, so a killed call loses nothing: OUT/bench_*.json, a log for each stage,
# and pictures where matplotlib is. Copy the JSON to experiments/results/ and draw what lacks a picture:
#   python experiments/bench_plots.py experiments/results/bench_*_h200*.json
# Python packages missing on that machine travel as wheels in .whl/:
#   pip download --no-deps --only-binary=:all: --python-version 3.12 -d .whl \
#     diffusers==0.42.1 hydra-core==1.3.8 omegaconf==2.3.1 ftfy wcwidth
#   pip wheel --no-deps -w .whl antlr4-python3-runtime==4.9.3      # no wheel of it is published
# Rehearsal on a CPU, with the toy settings: DEVICE=cpu bash experiments/bench_on_gpu.sh OUT all 2
# Not yet run on a GPU.
set -uo pipefail
out=${1:?type bash experiments/bench_on_gpu.sh OUT STAGE [MINUTES]} stage=${2:-all} minutes=${3:-9}
device=${DEVICE:-cuda} failed=0
if ! [[ $minutes =~ ^[0-9]+(\.[0-9]+)?$ ]] || [[ $minutes =~ ^0+(\.0+)?$ ]]; then
  echo "error: minutes $minutes is no time; type 9" >&2; exit 2
fi
export PYTHONUNBUFFERED=1 PYTHONPATH=$PWD
if compgen -G ".whl/*.whl" >/dev/null; then
  python3 -m pip install -q --no-index --no-deps --no-compile --upgrade --target /tmp/site .whl/*.whl
  PYTHONPATH=/tmp/site:$PYTHONPATH
fi
mkdir -p "$out"
# the toy settings of the rehearsal, one word list a script
attention=() step=() vae=() pipeline=()
if [ "$device" = cpu ]; then
  attention=(--tokens 4 8 16 --heads 2 --head-dim 16 --text 3 --repeats 2)
  step=(--tiny --sizes lr --models wan_1_3b --repeats 2)
  vae=(--tiny --sizes lr --repeats 2)
  pipeline=(--tiny --sparsity 0.5 --steps 2 --t-i 1 --repeats 1)
fi
share() { python3 -c "print(f'{$minutes * $1:.3f}')"; }
bench() { # name of the script, its minutes, further words; a failure is reported, the rest goes on
  local name=$1 time=$2; shift 2
  echo "== bench_$name.py, $time minutes"
  # killed a little after its time, because a measurement that was begun goes on; 9 minutes stay under 10
  timeout "$(python3 -c "print(int(60 * $time + ${GRACE:-10}))")" \
    python3 "experiments/bench_$name.py" --device "$device" --minutes "$time" --out "$out" "$@" 2>&1 |
    tee -a "$out/bench_$name.log" || { echo "bench_$name.py ended with an error or its time"; failed=1; }
}
of_sizes() { # the sizes of the attention benchmark exist on a GPU only
  if [ "$device" = cpu ]; then echo "${attention[@]}"; else echo --sizes "$@" --name "$(IFS=_; echo "$*")"; fi
}
case $stage in
  attention) bench attention "$minutes" ${attention[@]+"${attention[@]}"} ;;
  attention_lr) bench attention "$minutes" $(of_sizes lr) ;;
  attention_hr) bench attention "$minutes" $(of_sizes hr) --no-sweep ;;
  step) bench step "$minutes" ${step[@]+"${step[@]}"} ;;
  vae) bench vae "$minutes" ${vae[@]+"${vae[@]}"} ;;
  pipeline) bench pipeline "$minutes" --backbone wan_1_3b ${pipeline[@]+"${pipeline[@]}"} ;;
  all)
    bench attention "$(share .4)" ${attention[@]+"${attention[@]}"}
    bench step "$(share .3)" ${step[@]+"${step[@]}"}
    bench vae "$(share .1)" ${vae[@]+"${vae[@]}"}
    bench pipeline "$(share .2)" --backbone wan_1_3b ${pipeline[@]+"${pipeline[@]}"}
    ;;
  *) echo "error: stage $stage is unknown; type attention, step, vae, pipeline or all" >&2; exit 2 ;;
esac
du -sk "$out" | awk '$1 > 16384 { print "error: OUT holds more than 16 MiB"; exit 1 }' || failed=1
exit $failed
