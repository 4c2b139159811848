#!/usr/bin/env bash
# crowd-kit 1.4.2: BradleyTerry stops after two iterations, whatever n_iter and tol are. Its scores are near to counts of wins, far
# from the fit, and may have another order.
#
# The scores that it keeps to compare the next ones with are the same array, not a copy, so the change is 0 from the second iteration
# on and always below tol. Nothing is raised or warned. Whoever won much against weak opponents then stands above those who beat it;
# where all meet all equally often only the distances are wrong. loss_history_ stays empty.
#
# Output seen (Python 3.11, NumPy 2.4.6, pandas 3.1.1): A beats B, B beats C and so on to F, each in 3 of 4, E against F 9 of 12:
#   n_iter 1: A 0.240, E 0.200, B 0.160, C 0.160, D 0.160, F 0.080
#   n_iter 2: A 0.282, E 0.174, B 0.167, D 0.159, C 0.151, F 0.066
#   n_iter 10000: A 0.282, E 0.174, B 0.167, D 0.159, C 0.151, F 0.066
#   the same iteration without the stop: A 0.668, B 0.223, C 0.074, D 0.025, E 0.008, F 0.003
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    numpy==2.4.6 pandas==3.1.1 scipy==1.17.1 scikit-learn==1.9.1 nltk==3.10.4 attrs==26.1.0 tqdm==4.70.1
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps crowd-kit==1.4.2  # its rankings need no more than these
cat > "$folder/show.py" <<'PYTHON'
import warnings

import numpy as np
import pandas as pd
from crowdkit.aggregation import BradleyTerry

warnings.simplefilter("error")
names, wins = "ABCDEF", np.zeros((6, 6))
for i in range(5):
    games = 12 if i == 4 else 4
    wins[i, i + 1], wins[i + 1, i] = games * 3 / 4, games / 4
rows = [(names[i], names[j], names[i]) for i, j in np.argwhere(wins) for _ in range(int(wins[i, j]))]
data = pd.DataFrame(rows, columns=["left", "right", "label"])


def show(name, scores):
    best = scores.sort_values(ascending=False, kind="stable")
    print(f"{name}: " + ", ".join(f"{item} {score:.3f}" for item, score in best.items()))
    return "".join(best.index)


fitted = {n_iter: BradleyTerry(n_iter=n_iter, tol=1e-12).fit(data) for n_iter in (1, 2, 10000)}
orders = [show(f"n_iter {n_iter}", model.scores_) for n_iter, model in fitted.items()]
right = np.ones(6)
for _ in range(10000):
    right = wins.sum(1) / ((wins + wins.T) / (right[:, None] + right)).sum(1)
    right /= right.sum()
order = show("the same iteration without the stop", pd.Series(right, list(names)))
assert np.allclose(right[:-1] / right[1:], 3) and order == "ABCDEF"
assert (fitted[2].scores_ == fitted[10000].scores_).all() and fitted[10000].loss_history_ == [], "it behaves otherwise now"
assert orders == ["AEBCDF", "AEBDCF", "AEBDCF"], "it behaves otherwise now"
PYTHON
"$folder/venv/bin/python" "$folder/show.py"
