#!/usr/bin/env bash
# pymoo 0.6.2: NonDominatedSorting's epsilon changes nothing. With it or without it, the fronts are the same.
#
# With a tolerance a point should be dominated only by one that is better by more than epsilon, so that noise in the objectives
# does not order the points. Dominator.calc_domination_matrix of the same package has such an epsilon. NonDominatedSorting
# subtracts its own from every objective of every point, a shift of the whole set, and then ranks exactly. So a sort of noisy
# rewards reports as many fronts as the noise makes, however large epsilon is. Nothing is raised. Its argument method is ignored
# too. Take the matrix.
#
# Output seen (Python 3.11, NumPy 2.4.6, moocore 0.3.2); minimised points (0, 1), (0.01, 1.01), (0.02, 1.02):
#   epsilon None: ranks [0, 1, 2]
#   epsilon 0.1: ranks [0, 1, 2]
#   epsilon 1000: ranks [0, 1, 2]
#   pairs that dominate in the matrix with epsilon 0 / 0.1: 3 / 0
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check pymoo==0.6.2 moocore==0.3.2 scipy==1.17.1 "numpy<2.5"
cat > "$folder/show.py" <<'PYTHON'
import warnings

import numpy as np
from pymoo.util.dominator import Dominator
from pymoo.util.nds.non_dominated_sorting import NonDominatedSorting

warnings.simplefilter("error")
points = np.array([[0.0, 1.0], [0.01, 1.01], [0.02, 1.02]])
seen = []
for epsilon in (None, 0.1, 1000):
    ranks = NonDominatedSorting(epsilon=epsilon).do(points, return_rank=True)[1].tolist()
    seen.append(ranks)
    print(f"epsilon {epsilon}: ranks {ranks}")
pairs = [int((Dominator.calc_domination_matrix(points, epsilon=epsilon) == 1).sum()) for epsilon in (0.0, 0.1)]
print(f"pairs that dominate in the matrix with epsilon 0 / 0.1: {pairs[0]} / {pairs[1]}")
assert seen == [[0, 1, 2]] * 3 and pairs == [3, 0], "it behaves otherwise now"
PYTHON
"$folder/venv/bin/python" "$folder/show.py"
