#!/usr/bin/env bash
# evalica 0.4.2: weights below 1 lower the Elo scores of both models. Between equals, the winner of a comparison of weight ½ gains
# nothing, and at weight 0 it loses as much as the loser.
#
# elo multiplies the outcome by the weight and subtracts the whole expected outcome. Elo keeps the sum of all scores; with
# weights it shrinks. A model that is compared often at small weights sinks below one that is compared seldom, whoever
# wins. Weights are a judge's confidence, or a prompt's share of repeated verdicts. bradley_terry, in the same package,
# scales the whole comparison: one weight for all leaves its scores as they are. Nothing is raised, and both solvers agree.
#
# Output seen (Python 3.11, NumPy 2.4.6, pandas 3.1.1); A and B win ten comparisons each, in turn, and C and D draw once:
#   weight 1: A 1000 B 1000 C 1000 D 1000, sum 4000
#   weight 0.5: A 980 B 980 C 1000 D 1000, sum 3960
#   weight 0: A 960 B 960 C 1000 D 1000, sum 3920
#   one win of A over B: weight 1 gives A 1002, 0.5 gives A 1000, 0 gives A 998
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check evalica==0.4.2 "numpy<2.5" pandas==3.1.1 scipy==1.17.1
cat > "$folder/show.py" <<'PYTHON'
import evalica
from evalica import Winner

left, right = ["A"] * 20 + ["C"], ["B"] * 20 + ["D"]
winners = [Winner.X, Winner.Y] * 10 + [Winner.Draw]
sums, single = {}, {}
for weight in (1.0, 0.5, 0.0):
    for solver in ("naive", "pyo3"):
        found = evalica.elo(left, right, winners, weights=[weight] * 20 + [1.0], solver=solver).scores.sort_index()
        sums[weight] = found.sum()
    scores = " ".join(f"{name} {score:.0f}" for name, score in found.items())
    print(f"weight {weight:g}: {scores}, sum {sums[weight]:.0f}")
    single[weight] = evalica.elo(["A"], ["B"], [Winner.X], weights=[weight]).scores["A"]
print("one win of A over B: weight " + ", ".join(f"{weight:g} gives A {score:.0f}" for weight, score in single.items()))
assert abs(sums[1.0] - 4000) < 1e-6 and sums[0.5] < 3970 and sums[0.0] < 3930, "it behaves otherwise now"
assert single[1.0] > 1001 and abs(single[0.5] - 1000) < 1e-9 and single[0.0] < 999, "it behaves otherwise now"
PYTHON
"$folder/venv/bin/python" "$folder/show.py"
