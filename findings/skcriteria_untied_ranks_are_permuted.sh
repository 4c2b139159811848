#!/usr/bin/env bash
# scikit-criteria 0.10: untied_rank_ of a ranking with a tie is another ranking: the winner may become third, a loser first.
#
# It is to give tied alternatives ranks of their own. It takes argsort of the ranks, which is not a rank for each alternative but
# the alternatives' places in order of their ranks, the inverse of what is meant. So one tie anywhere moves alternatives that
# were not tied. to_series(untied=True), and ranks_cmp's to_dataframe, corr, distance and plots with untied=True go through it:
# two methods that agree but for a tie seem to disagree, if policies are compared on several rewards. Without a tie nothing
# happens. Nothing is raised. Take argsort twice.
#
# Output seen (Python 3.11, NumPy 2.4.6, pandas 3.1.1), weighted sums of A (1, 1), B (5, 5), C (3, 3) and D (3, 3):
#   ranks: A 3, B 1, C 2, D 2
#   untied: A 2, B 3, C 4, D 1
#   argsort twice: A 4, B 1, C 2, D 3
#   correlation with the ranking A 4, B 1, C 2, D 3: 0.91, untied -0.33
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check scikit-criteria==0.10 pandas==3.1.1 scipy==1.17.1 "numpy<2.5"
cat > "$folder/show.py" <<'PYTHON'
import warnings

import numpy as np
import skcriteria
from skcriteria.agg import RankResult
from skcriteria.agg.simple import WeightedSumModel
from skcriteria.cmp import RanksComparator

warnings.simplefilter("error")
NAMES = list("ABCD")


def text(ranks) -> str:
    return ", ".join(f"{name} {rank}" for name, rank in zip(NAMES, ranks, strict=True))


rows = skcriteria.mkdm([[1, 1], [5, 5], [3, 3], [3, 3]], [max, max], alternatives=NAMES)
tied = WeightedSumModel().evaluate(rows)
twice = np.argsort(np.argsort(tied.rank_, kind="stable")) + 1
print(f"ranks: {text(tied.rank_)}")
print(f"untied: {text(tied.untied_rank_)}")
print(f"argsort twice: {text(twice)}")
pair = RanksComparator([("tied", tied), ("strict", RankResult("other", NAMES, twice, {}))], {})
plain, untied = (float(pair.corr(untied=option).loc["tied", "strict"]) for option in (False, True))
print(f"correlation with the ranking {text(twice)}: {plain:.2f}, untied {untied:.2f}")
assert tied.rank_.tolist() == [3, 1, 2, 2] and twice.tolist() == [4, 1, 2, 3], "the ranks are others now"
assert tied.untied_rank_.tolist() == [2, 3, 4, 1] and plain > 0.9 and untied < 0, "it behaves otherwise now"
PYTHON
"$folder/venv/bin/python" "$folder/show.py" 2> "$folder/log" || { cat "$folder/log"; exit 1; }
