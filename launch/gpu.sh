#!/usr/bin/env bash
# A run on one host with NVIDIA GPUs, all of them: to be started on the host, in the repository.
#   CONFIG=configs/reddit.py:summary,faithful   what runs
#   WORKDIR=runs/reddit                         where results go; run again to resume from the last checkpoint
#   VENV=.venv                                  the virtual environment, made if it is not there
#   EXTRA=cuda                                  cuda12 for drivers older than 580
#   CUDA_VISIBLE_DEVICES=0,1                    to use some of the GPUs
#   bash launch/gpu.sh [--config.name=value …]
# Only the driver must be there: JAX's wheels bring CUDA's libraries. LD_LIBRARY_PATH would put others in their place.
# JAX takes three quarters of a GPU's memory; where the run needs more: XLA_PYTHON_CLIENT_MEM_FRACTION=0.92.
set -euo pipefail
cd "$(dirname "$0")/.."
unset LD_LIBRARY_PATH
config="${CONFIG:-configs/reddit.py:summary,faithful}"
workdir="${WORKDIR:-runs/reddit}"
# shellcheck source=/dev/null
source launch/venv.sh "${VENV:-.venv}" ".[${EXTRA:-cuda}]"
python -m meal_jax.doctor --config="$config" --workdir="$workdir" "$@"
exec python -m meal_jax.main --config="$config" --workdir="$workdir" "$@"
