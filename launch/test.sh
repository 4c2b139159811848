#!/usr/bin/env bash
# The tests on this machine's CPU: a virtual environment, the package with its test extra, pytest.
#   bash launch/test.sh                       the default suite
#   bash launch/test.sh -m slow               the long ones, after bash launch/fetch_smollm2.sh for those on real weights
#   bash launch/test.sh tests/meal -k adapt   any pytest arguments; -n 0 runs in one process
#   VENV=.venv-test    the virtual environment, made if it is not there
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=/dev/null
source launch/venv.sh "${VENV:-.venv-test}" '.[test]'
# A worker a core, at most four: each compiles for itself and holds a gigabyte or two.
exec python -m pytest --numprocesses=auto --maxprocesses=4 --dist=loadfile --no-loadscope-reorder "$@"
