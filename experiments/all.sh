#!/usr/bin/env bash
# Everything of experiments/README.md on the embedded backbone: clips, tables, claims, page, figures.
#
#   bash experiments/all.sh [RUNS [WORDS of run.py ...]]      # RUNS: the store, default runs
#
# Some three hours on two cores (an estimate; the claims take most of it). Type it again after a stop or a failure: clips that exist are not made again, and
# measurements that are not clips (marked `once`) leave a mark in RUNS/done/. A failure stops nothing else;
# it ends with 1 and a list of what failed. Tables land in RUNS/tables/, the rest in experiments/results/.
# WORDS make it smaller: bash experiments/all.sh /tmp/small prompts.count=1 steps=4 t_i=2; claims and the
# measurements, which need their full size, are then left out.
set -u
runs="${1:-runs}"
[ $# -gt 0 ] && shift
mkdir -p "$runs" && runs="$(cd "$runs" && pwd)" || exit 2
cd "$(dirname "$0")/.."
mkdir -p "$runs/tables" "$runs/done"
failed=()

step() { # NAME COMMAND...
    local name="$1"; shift
    echo "== $name: $*"
    "$@" || failed+=("$name")
}

once() { # NAME COMMAND...: a command that would start over
    [ -e "$runs/done/$1" ] && { echo "== $1: done before"; return; }
    local before=${#failed[@]}
    step "$@"
    [ "${#failed[@]}" -eq "$before" ] && touch "$runs/done/$1"
}

table() { # TABLE FORMAT, whole or not at all
    local to="$runs/tables/$1.$2"
    python experiments/tables.py "$1" --runs "$runs" --format "$2" > "$to.part" && mv "$to.part" "$to"
}

for name in demo table1 table2 table3 table4 figure3 figure5 figure6; do
    step "$name" python run.py "experiment=$name" "runs_dir=$runs" cache=retry "$@"
done
for name in table1 table2 table3 table4; do
    for format in text md tex csv html; do step "$name.$format" table "$name" "$format"; done
done
if [ $# -eq 0 ]; then
    step claims python experiments/claims.py --run --runs "$runs" batch=8 cache=retry
    once card python experiments/backbone_card.py
    once solver_error python experiments/solver_error.py --prompts 2 --steps 10,20,40
    once solver_error_gaussian python experiments/solver_error.py --flow gaussian --prompts 16 --steps 5,10,20,40,80
fi
step page python -m s2flow.report "$runs"
step notebooks python analysis/export.py --runs "$runs"

[ ${#failed[@]} -eq 0 ] && { echo "all done"; exit 0; }
echo "failed: ${failed[*]}; type the same command to try these again" >&2
exit 1
