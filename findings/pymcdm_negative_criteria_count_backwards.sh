#!/usr/bin/env bash
# pymcdm 1.4.0: where a criterion is negative, as log-likelihoods and many rewards are, MARCOS, WASPAS, EDAS, CODAS and LMAW with
# their default settings prefer its low values, though it is declared as one to be large.
#
# They divide the criterion by its largest value or by its mean. If that is negative, the quotient grows as the criterion falls.
# Nothing is raised or warned. If one alternative is best in everything, the call warns that it dominates the others, and puts it
# last all the same. WSM, WPM and ARAS refuse such a matrix, and TOPSIS, VIKOR, MABAC and MAIRCA, which subtract first, rank
# it as meant. Adding a constant that makes the column positive puts all of them right.
#
# Output seen (Python 3.11, NumPy 2.4.6, SciPy 1.17.1); helpfulness 4.0, 4.1, 4.2, log-likelihood -10, -40, -80, both to be large
# with weights 0.3 and 0.7; ranks, those with 100 added to the log-likelihood, those if the first has 4.2 and the last 4.0:
#   MARCOS, WASPAS, EDAS, CODAS, LMAW: [3, 2, 1], [1, 2, 3], [3, 2, 1]
#   TOPSIS, VIKOR, MABAC, MAIRCA: [1, 2, 3], [1, 2, 3], [1, 2, 3]
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check numpy==2.4.6 scipy==1.17.1 pymcdm==1.4.0
cat > "$folder/show.py" <<'PYTHON'
import warnings

import numpy as np
from pymcdm import methods

matrix, best_of_all = np.array([[4.0, -10.0], [4.1, -40.0], [4.2, -80.0]]), np.array([[4.2, -10.0], [4.1, -40.0], [4.0, -80.0]])
weights, profit = np.array([0.3, 0.7]), np.array([1, 1])


def ranks(name, values, action="error"):
    method = getattr(methods, name)()
    with warnings.catch_warnings():
        warnings.simplefilter(action)
        return method.rank(method(values, weights, profit)).astype(int).tolist()


backwards, right = ("MARCOS", "WASPAS", "EDAS", "CODAS", "LMAW"), ("TOPSIS", "VIKOR", "MABAC", "MAIRCA")
for names, wrong in ((backwards, True), (right, False)):
    seen = {name: (ranks(name, matrix), ranks(name, matrix + [0, 100]), ranks(name, best_of_all, "ignore")) for name in names}
    first = seen[names[0]]
    print(", ".join(names) + ": " + ", ".join(map(str, first)))
    assert all(each == first for each in seen.values()), "it ranks otherwise now"
    expected = [3, 2, 1] if wrong else [1, 2, 3]
    assert first == (expected, [1, 2, 3], expected), "it ranks otherwise now"
for name in ("WSM", "WPM", "ARAS"):
    try:
        ranks(name, matrix)
    except ValueError:
        continue
    raise AssertionError("it takes negative criteria now")
PYTHON
"$folder/venv/bin/python" "$folder/show.py"
