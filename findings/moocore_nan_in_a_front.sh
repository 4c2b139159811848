#!/usr/bin/env bash
# moocore 0.3.2: a point that is NaN in one of two objectives is left out of the hypervolume, in silence, and yet may be called
# the only nondominated one.
#
# A front of average rewards has a NaN where one evaluation went wrong. The hypervolume is then a finite number that looks
# like any other, that of the rest of the front. is_nondominated answers by where the NaN stands: with NaN first and an
# ordinary second objective the point is dominated; with a first objective above all others and NaN second it dominates
# every real point, which a filter then removes. Nothing is raised, nothing warned. So check that a front is finite before
# it is measured or filtered.
#
# Output seen (moocore 0.3.2, NumPy 2.4.6, Python 3.11):
#   with [nan, 0.5]: hypervolume 0.28 (0.28 without it), nondominated [True, True, False]
#   with [0.9, nan]: hypervolume 0.28 (0.28 without it), nondominated [False, False, True]
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check moocore==0.3.2 numpy
cat > "$folder/show.py" <<'PYTHON'
import warnings

import moocore
import numpy as np

warnings.simplefilter("error")
front = np.array([[0.2, 0.8], [0.8, 0.2]])
without = moocore.hypervolume(front, ref=[0, 0], maximise=True)
for point, expected in (([np.nan, 0.5], [True, True, False]), ([0.9, np.nan], [False, False, True])):
    rows = np.array([*front, point])
    measured = moocore.hypervolume(rows, ref=[0, 0], maximise=True)
    kept = moocore.is_nondominated(rows, maximise=True).tolist()
    print(f"with {point}: hypervolume {measured:.2f} ({without:.2f} without it), nondominated {kept}")
    assert measured == without and kept == expected, "the behaviour has changed"
PYTHON
"$folder/venv/bin/python" "$folder/show.py"
