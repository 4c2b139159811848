#!/usr/bin/env bash
# botorch 0.18.1: with a NaN among more than some 800 points, is_non_dominated may drop the whole front and keep only the NaN.
#
# Its docstring says that a point with a NaN counts as dominated. Up to 790 points (two objectives, float64) that holds if
# duplicates are dropped, the default; with deduplicate=False such a point is in the front. For larger sets a loop takes over:
# it keeps what is greater than the point at hand in some objective, and nothing is greater than NaN. So a point (NaN, 0.999)
# removes every point whose second objective is not above 0.999, and stays itself. One failed reward in an evaluation changes
# a front of four into one of none, if there are a few more prompts than before. Remove such rows before the call.
#
# Output seen (Python 3.11, torch 2.13.0, CPU); random points and one (NaN, 0.999), rows without a NaN in the front / found:
#   790 points: 4 / 4, the NaN False
#   790 points, deduplicate=False: 4 / 4, the NaN True
#   791 points: 4 / 0, the NaN True
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check botorch==0.18.1 torch==2.13.0 moocore==0.3.2 \
    "numpy<2.5"
cat > "$folder/show.py" <<'PYTHON'
import warnings

import moocore
import numpy as np
import torch
from botorch.utils.multi_objective.pareto import is_non_dominated

drawn = np.random.default_rng(0).uniform(size=(1000, 2))
warnings.simplefilter("error")
seen = []
for count, options in ((790, {}), (790, {"deduplicate": False}), (791, {})):
    points = drawn[:count].copy()
    points[count // 2] = np.nan, 0.999
    finite = ~np.isnan(points).any(axis=1)
    front = int(moocore.is_nondominated(points[finite], maximise=True).sum())
    mask = is_non_dominated(torch.tensor(points), **options).numpy()
    seen.append((front, int(mask[finite].sum()), bool(mask[~finite][0])))
    named = "".join(f", {name}={value}" for name, value in options.items())
    print(f"{count} points{named}: {seen[-1][0]} / {seen[-1][1]}, the NaN {seen[-1][2]}")
front = seen[0][0]
assert front > 1 and seen == [(front, front, False), (front, front, True), (front, 0, True)], "it behaves otherwise now"
PYTHON
"$folder/venv/bin/python" "$folder/show.py"
