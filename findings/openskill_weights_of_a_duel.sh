#!/usr/bin/env bash
# openskill 6.2.0: in matches of one against one the values of weights do not matter, but giving any doubles the winner's gain
# and halves the loser's loss: the mean rating rises with every match.
#
# Weights are scaled within each team to weight_bounds, (1, 2) by default. A team of one always gets the upper bound, 2, while
# equal weights in a larger team become the lower bound, 1. A comparison of two models is such a match, so a weight of 0.1 for
# an uncertain judgement counts as a weight of 1 or 5 does. Nothing is raised. The docstring offers weight_bounds=None to turn
# the scaling off, but the released wheel raises a TypeError for it. Give no weights in such matches.
#
# Output seen (Python 3.11); all at mu 25, the first team wins, change of the winner's and the loser's mu:
#   PlackettLuce: no weights (2.635, -2.635), 0.1 (5.271, -1.318), 1 (5.271, -1.318), 5 (5.271, -1.318)
#   BradleyTerryFull: no weights (2.635, -2.635), 0.1 (5.271, -1.318), 1 (5.271, -1.318), 5 (5.271, -1.318)
#   PlackettLuce, teams of two: no weights (1.964, -1.964), 1 (1.964, -1.964)
#   weight_bounds=None: TypeError
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check openskill==6.2.0
cat > "$folder/show.py" <<'PYTHON'
import warnings

from openskill.models import BradleyTerryFull, PlackettLuce

warnings.simplefilter("error")


def change(model, weights=None, size: int = 1) -> tuple[float, float]:
    teams = [[model.rating() for _ in range(size)] for _ in range(2)]
    won, lost = model.rate(teams, ranks=[1, 2], weights=weights)
    return round(won[0].mu - 25, 3), round(lost[0].mu - 25, 3)


for kind in (PlackettLuce, BradleyTerryFull):
    none = change(kind())
    some = {weight: change(kind(), [[weight], [weight]]) for weight in (0.1, 1.0, 5.0)}
    print(f"{kind.__name__}: no weights {none}, " + ", ".join(f"{weight:g} {found}" for weight, found in some.items()))
    assert len(set(some.values())) == 1, "the values matter now"
    assert abs(some[1.0][0] - 2 * none[0]) < 0.002 and abs(some[1.0][1] - none[1] / 2) < 0.002, "it behaves otherwise now"
pair, weighted = change(PlackettLuce(), size=2), change(PlackettLuce(), [[1.0, 1.0], [1.0, 1.0]], size=2)
print(f"PlackettLuce, teams of two: no weights {pair}, 1 {weighted}")
assert pair == weighted, "teams of two behave otherwise now"
try:
    PlackettLuce(weight_bounds=None)
    unscaled = "no error"
except TypeError as error:
    unscaled = type(error).__name__
print(f"weight_bounds=None: {unscaled}")
assert unscaled == "TypeError", "weight_bounds=None behaves otherwise now"
PYTHON
"$folder/venv/bin/python" "$folder/show.py" 2> "$folder/log" || { cat "$folder/log"; exit 1; }
