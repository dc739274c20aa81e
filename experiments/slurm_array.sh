#!/usr/bin/env bash
# One shard of a sweep per Slurm array task, on one GPU each; all on the same runs_dir.
#
#   sbatch experiments/slurm_array.sh experiment=table2 backbone=hunyuan prompts=vbench
#   sbatch --array=1-32 --time=08:00:00 --partition=gpu experiments/slurm_array.sh ...
#   sbatch --gpus-per-node=4 --cpus-per-task=32 experiments/slurm_array.sh context_parallel=4 ...   one clip on 4 GPUs
#
# Submit from the repository, always with the whole array 1-n: task k takes shard=k/n, and shards that are
# complete end at once. 120 s before the end of its time, and when it is preempted, run.py drops the clip
# in flight and ends with 75: "type the same command again". The task is then queued again.
#SBATCH --job-name=s2flow
#SBATCH --array=1-8
#SBATCH --nodes=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%A_%a.out
set -u

# environment of yours: module load, source venv/bin/activate

command=(python run.py)
gpus=${SLURM_GPUS_ON_NODE:-1}
if [ "$gpus" -gt 1 ]; then # a process per GPU
  command=(torchrun --standalone --nproc_per_node="$gpus" run.py)
fi

"${command[@]}" "$@" "shard=$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT" &
run=$!
told=
stop() { # B: signals this shell only
  told=$1
  [ "$gpus" -gt 1 ] && set -- TERM # the one that torchrun passes on
  kill -"$1" "$run" 2>/dev/null
}
trap 'stop USR1' USR1
trap 'stop TERM' TERM

wait "$run"
status=$?
while kill -0 "$run" 2>/dev/null; do # a trapped signal ends `wait`, not the run
  wait "$run"
  status=$?
done

# torchrun has a status of its own when it was told to stop, and so has a Python that has not yet begun
if [ "$status" -eq 75 ] || { [ -n "$told" ] && [ "$status" -ne 0 ]; }; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
