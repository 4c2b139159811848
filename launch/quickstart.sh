#!/usr/bin/env bash
# The main job on this machine's CPU: a virtual environment, the package, and Meal beside the static method on the two
# embedded benchmarks, a language whose front is known exactly and stories told by a small model. Needs Python 3.11 or newer
# and the package index; no accelerator, no account, no weights.
#   VENV=.venv           the virtual environment, made if it is not there
#   WORKDIR=runs/toy     where results of the first go; run again to resume from the last checkpoint
#   STORIES=runs/stories where those of the second go, stories.png among them: one beginning told at five preferences
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=/dev/null
source launch/venv.sh "${VENV:-.venv}" .
python -m meal_jax.main --config=configs/toy.py --workdir="${WORKDIR:-runs/toy}"
python -m meal_jax.main --config=configs/stories.py --workdir="${STORIES:-runs/stories}"
python -m meal_jax.answers_figure --run="${STORIES:-runs/stories}" --out="${STORIES:-runs/stories}/stories.png"
