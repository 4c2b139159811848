#!/usr/bin/env bash
# A run on GPU nodes under Slurm. Nodes, time and so on are sbatch's, whose flags go before those written here:
#   sbatch --nodes=4 --partition=gpu --export=ALL,WORKDIR=/shared/runs/reddit launch/slurm.sh [--config.name=value …]
#   CONFIG=configs/reddit.py:summary,faithful   what runs
#   WORKDIR=runs/reddit                         where results go, on the nodes' shared file system
#   VENV=.venv     the virtual environment, made beforehand on the shared file system: pip install -e '.[cuda]'
# Submit it in the repository. One process a GPU, as JAX takes a Slurm task to be: reward functions in Python are then
# spread over as many processes. For one a node set --ntasks-per-node=1 and JAX_LOCAL_DEVICE_IDS=0,1,2,3,4,5,6,7.
#
# Two minutes before the time limit (or a preemption, where the cluster sends it) the run is told to save and leave, and the
# job goes back into the queue; so it does when a node fails. It resumes from the last checkpoint. A step and a save must fit
# into that time: --signal=B:TERM@600 for slow ones.
#SBATCH --job-name=meal
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gres=gpu:8
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.log
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:?is set by sbatch: submit this script with it}"
config="${CONFIG:-configs/reddit.py:summary,faithful}"
workdir="${WORKDIR:-runs/reddit}"
unset LD_LIBRARY_PATH # JAX's wheels bring CUDA's libraries
# shellcheck source=/dev/null
source "${VENV:-.venv}/bin/activate"

# Every task sees all GPUs of its node (--gpu-bind=none) and takes the one of its number.
# A task that fails is missed by the others, which end by themselves, while those that have saved must not be killed.
run=(srun --gpu-bind=none --kill-on-bad-exit=0)
"${run[@]}" python -m meal_jax.doctor --config="$config" --workdir="$workdir" --distributed "$@"
"${run[@]}" python -m meal_jax.main --config="$config" --workdir="$workdir" --distributed --stopped_status=75 "$@" &
running=$!
trap 'scancel --signal=TERM "$SLURM_JOB_ID"' TERM # Slurm told this shell; so the tasks are told (srun would kill them)
status=0
wait "$running" || status=$?
if kill -0 "$running" 2>/dev/null; then # the signal ended the wait, not the run
  status=0
  wait "$running" || status=$?
fi
if ((status == 75)); then # saved, and not at its end
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
