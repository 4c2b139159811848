#!/usr/bin/env bash
# evalica 0.4.2: if one model loses all of its comparisons, or wins all, bradley_terry gives every model the score 1e-06.
#
# Such a model has no finite Bradley-Terry strength. The others have theirs, but all scores are divided by their geometric
# mean, which one zero makes zero; what is not a number is then replaced by the tolerance. So a leaderboard with one
# hopeless baseline, or one clear winner, has no order left, and its predicted win rates are ½ for every pair. Nothing is
# raised or warned; only the result's `iterations` has reached `limit`. Both solvers do it. newman, of the same package,
# places the loser last and keeps the others' order. Remove such models first, or add a tie between all pairs.
#
# Output seen (Python 3.11, NumPy 2.4.6, pandas 3.1.1); A wins 8 of 10 against B and C, B wins 8 of 10 against C:
#   three models: A 2.64 B 1.00 C 0.38
#   with one that loses all: A 1e-06 B 1e-06 C 1e-06 D 1e-06; newman A 5.90 B 2.23 C 0.85 D 1e-06
#   with one that wins all: A 1e-06 B 1e-06 C 1e-06 D 1e-06
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check evalica==0.4.2 "numpy<2.5" pandas==3.1.1 scipy==1.17.1
cat > "$folder/show.py" <<'PYTHON'
import warnings

import evalica
from evalica import Winner

warnings.simplefilter("error")


def compare(first: str, second: str, wins: int, losses: int) -> list:
    return [(first, second, Winner.X)] * wins + [(first, second, Winner.Y)] * losses


def scores(method, rows: list, **options) -> dict:
    left, right, winners = zip(*rows, strict=True)
    return method(left, right, winners, **options).scores.sort_index().to_dict()


def text(found: dict) -> str:
    return " ".join(f"{name} {score:.2f}" if score > 0.001 else f"{name} {score:g}" for name, score in found.items())


three = compare("A", "B", 8, 2) + compare("A", "C", 8, 2) + compare("B", "C", 8, 2)
loser = three + [row for name in "ABC" for row in compare(name, "D", 10, 0)]
winner = three + [row for name in "ABC" for row in compare(name, "D", 0, 10)]
ranked = scores(evalica.bradley_terry, three)
print(f"three models: {text(ranked)}")
assert ranked["A"] > ranked["B"] > ranked["C"], "it behaves otherwise now"
kept = scores(evalica.newman, loser)
flat = [scores(evalica.bradley_terry, rows, solver=solver) for rows in (loser, winner) for solver in ("pyo3", "naive")]
print(f"with one that loses all: {text(flat[0])}; newman {text(kept)}")
print(f"with one that wins all: {text(flat[2])}")
assert all(score == 1e-06 for found in flat for score in found.values()), "it behaves otherwise now"
assert kept["A"] > kept["B"] > kept["C"] > kept["D"], "newman behaves otherwise now"
PYTHON
"$folder/venv/bin/python" "$folder/show.py"
