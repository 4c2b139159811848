#!/usr/bin/env bash
# evalica 0.4.2: eigen ranks the worst model first: its scores are high for models that lose, and sorted in descending order.
#
# It multiplies by the transposed matrix of wins, so a model's score is the sum of the scores of the models that beat it. All
# other methods of the package give the best model the largest score. Nothing in the result shows it, and both solvers
# agree. In a leaderboard of several methods, or an average of their ranks, this one counts against the rest. Swapping the
# two lists of models gives the right order.
#
# Output seen (Python 3.11, NumPy 2.4.6, pandas 3.1.1); A wins 8 of 10 against B, C and D, B against C and D, C against D:
#   counting: A 24.00, B 18.00, C 12.00, D 6.00
#   bradley_terry: A 3.06, B 1.42, C 0.70, D 0.33
#   newman: A 3.06, B 1.42, C 0.70, D 0.33
#   pagerank: A 0.33, B 0.27, C 0.22, D 0.19
#   eigen: D 0.73, C 0.52, B 0.37, A 0.26
#   eigen, lists swapped: A 0.73, B 0.52, C 0.37, D 0.26
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check evalica==0.4.2 "numpy<2.5" pandas==3.1.1 scipy==1.17.1
cat > "$folder/show.py" <<'PYTHON'
import evalica
from evalica import Winner

left, right, winners = [], [], []
for i, better in enumerate("ABCD"):
    for worse in "ABCD"[i + 1 :]:
        left += [better] * 10
        right += [worse] * 10
        winners += [Winner.X] * 8 + [Winner.Y] * 2

seen = {}
for method in (evalica.counting, evalica.bradley_terry, evalica.newman, evalica.pagerank, evalica.eigen):
    found = method(left, right, winners).scores
    seen[method.__name__] = "".join(found.index)
    print(f"{method.__name__}: " + ", ".join(f"{name} {score:.2f}" for name, score in found.items()))
swapped = evalica.eigen(right, left, winners).scores
print("eigen, lists swapped: " + ", ".join(f"{name} {score:.2f}" for name, score in swapped.items()))
naive = evalica.eigen(left, right, winners, solver="naive").scores
assert seen.pop("eigen") == "".join(naive.index) == "DCBA", "it behaves otherwise now"
assert set(seen.values()) == {"ABCD"} and "".join(swapped.index) == "ABCD", "the others behave otherwise now"
PYTHON
"$folder/venv/bin/python" "$folder/show.py"
