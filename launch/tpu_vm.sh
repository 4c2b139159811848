#!/usr/bin/env bash
# A run on one TPU VM (v5e-1, -4, -8, v6e-1, -4, -8, v4-8, v5p-8 …): to be started on the VM itself, in the repository.
#   CONFIG=configs/reddit.py:summary,faithful   what runs
#   WORKDIR=runs/reddit                         where results go, on a disk that outlives the VM; run again to go on
#   VENV=.venv                                  the virtual environment, made if it is not there
#   PYTHON=python3                              3.11 or newer; where the VM's is older: pip install uv, uv python install 3.12
#   bash launch/tpu_vm.sh [--config.name=value …]
# The VM's user needs no root. Over ssh start it in tmux, or the run ends with the connection; SIGTERM saves, then it leaves.
set -euo pipefail
cd "$(dirname "$0")/.."
config="${CONFIG:-configs/reddit.py:summary,faithful}"
workdir="${WORKDIR:-runs/reddit}"
# shellcheck source=/dev/null
source launch/venv.sh "${VENV:-.venv}" '.[tpu]'
python -m meal_jax.doctor --config="$config" --workdir="$workdir" "$@"
exec python -m meal_jax.main --config="$config" --workdir="$workdir" "$@"
