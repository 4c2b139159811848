#!/usr/bin/env bash
# pymoo 0.6.2: normalize, and indicators with zero_to_one=True, cut the scaled values of an array of integers off to 0 and 1.
#
# ZeroToOneNormalization copies its input and writes the scaled values into the copy, which has the input's type: NumPy cuts them
# off to integers. Counts, ratings and lengths are integers, so a front of them collapses onto the corners of the unit square:
# the hypervolume of the front below becomes that of a perfect one, and IGD is wrong too. Without zero_to_one all is right.
# Nothing is raised or warned. Cast to float first.
#
# Output seen (Python 3.11, NumPy 2.4.6, moocore 0.3.2), the minimised front [1 9], [3 4], [8 2], bounds 0 and 10:
#   normalize: [[0.0, 1.0], [0.29, 0.29], [1.0, 0.0]] of floats, [[0, 1], [0, 0], [1, 0]] of integers
#   HV(zero_to_one=True): 0.48 of floats, 1.00 of integers
#   IGD(zero_to_one=True): 0.22 of floats, 0.67 of integers
#   HV(): 48 of floats, 48 of integers
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check pymoo==0.6.2 moocore==0.3.2 scipy==1.17.1 "numpy<2.5"
cat > "$folder/show.py" <<'PYTHON'
import warnings

import numpy as np
from pymoo.indicators.hv import HV
from pymoo.indicators.igd import IGD
from pymoo.util.normalization import normalize

warnings.simplefilter("error")
front, best = np.array([[1, 9], [3, 4], [8, 2]]), np.array([[0, 10], [5, 5], [10, 0]])
corner, zeros = np.array([10, 10]), np.array([0, 0])


def measures(kind: type) -> list[float]:
    scaled = HV(ref_point=corner.astype(kind), zero_to_one=True, ideal=zeros.astype(kind), nadir=corner.astype(kind))
    distance, plain = IGD(best.astype(kind), zero_to_one=True), HV(ref_point=corner.astype(kind))
    return [float(measure(front.astype(kind))) for measure in (scaled, distance, plain)]


floats, integers = normalize(front.astype(float)), normalize(front)
true, found = measures(float), measures(int)
print(f"normalize: {floats.round(2).tolist()} of floats, {integers.tolist()} of integers")
names = "HV(zero_to_one=True)", "IGD(zero_to_one=True)", "HV()"
for name, one, other, form in zip(names, true, found, (".2f", ".2f", "g"), strict=True):
    print(f"{name}: {one:{form}} of floats, {other:{form}} of integers")
assert integers.tolist() == [[0, 1], [0, 0], [1, 0]] and not np.allclose(integers, floats), "it behaves otherwise now"
assert np.allclose(true, [0.48, 0.216, 48], atol=1e-3), "the indicators of floats behave otherwise now"
assert np.allclose(found, [1, 2 / 3, 48]), "the indicators behave otherwise now"
PYTHON
"$folder/venv/bin/python" "$folder/show.py"
