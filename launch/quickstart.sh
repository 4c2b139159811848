#!/usr/bin/env bash
# The main job on this machine's CPU: a virtual environment, the package, and Meal beside the static method on the
# embedded benchmark. Needs Python 3.11 or newer and the package index; no accelerator, no account, no weights.
#   VENV=.venv       the virtual environment, made if it is not there
#   WORKDIR=runs/toy where results go; run again to go on from the last checkpoint
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=/dev/null
source launch/venv.sh "${VENV:-.venv}" .
python -m meal_jax.main --config=configs/toy.py --workdir="${WORKDIR:-runs/toy}"
