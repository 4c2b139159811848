#!/usr/bin/env bash
# pymoo 0.6.2: one NaN in a front makes its IGD 0, the best value there is, however far the other points are from the reference
# front. A front without any point has IGD, GD, IGD+ and ε of 0 too.
#
# IGD is computed by moocore (its own igd gives 0 as well). GD of the same front is NaN, as one would guess; IGD+ and ε are
# finite and too small. The value of an empty front is pymoo's own: a run that found no feasible policy looks perfect.
# So a sweep that keeps the smallest IGD keeps the broken run. Nothing is raised or warned. Check first that a front has
# rows and is finite.
#
# Output seen (Python 3.11, NumPy 2.4.6, moocore 0.3.2), reference front (0, 1), (½, ½), (1, 0):
#   [[5, 6], [6, 5]]: IGD 7.08, GD 7.07, IGD+ 7.08, epsilon 5.50
#   [[5, 6], [6, 5], [0.5, nan]]: IGD 0.00, GD nan, IGD+ 0.17, epsilon 0.50
#   no point: IGD 0.00, GD 0.00, IGD+ 0.00, epsilon 0.00
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check pymoo==0.6.2 moocore==0.3.2 "numpy<2.5" scipy==1.17.1
cat > "$folder/show.py" <<'PYTHON'
import math

import numpy as np
from pymoo.indicators.epsilon import Epsilon
from pymoo.indicators.gd import GD
from pymoo.indicators.igd import IGD
from pymoo.indicators.igd_plus import IGDPlus

reference = np.array([[0, 1], [0.5, 0.5], [1, 0]])
far = [[5, 6], [6, 5]]
broken = [*far, [0.5, math.nan]]
indicators = {"IGD": IGD(reference), "GD": GD(reference), "IGD+": IGDPlus(reference), "epsilon": Epsilon(reference)}
seen = {}
for name, front in ((str(far), far), (str(broken), broken), ("no point", np.empty((0, 2)))):
    seen[name] = [float(indicator.do(np.array(front, float))) for indicator in indicators.values()]
    print(f"{name}: " + ", ".join(f"{of} {value:.2f}" for of, value in zip(indicators, seen[name], strict=True)))
good, bad, empty = seen.values()
assert min(good) > 4, "it behaves otherwise now"
assert bad[0] == 0 and math.isnan(bad[1]) and bad[2] < 1 and empty == [0, 0, 0, 0], "it behaves otherwise now"
PYTHON
"$folder/venv/bin/python" "$folder/show.py"
