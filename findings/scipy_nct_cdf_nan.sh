#!/usr/bin/env bash
# SciPy 1.17.1: stats.nct.cdf is NaN for some ordinary arguments, and finite on both sides of them.
#
# At 4 degrees of freedom and t = 1 the share below t is under 1e-200 for noncentralities from 36 on. SciPy gives such a tiny
# number up to 38, NaN from 38.5 to 41.5, and 0 from 42 on. The interval of a standardised effect size is found by solving
# nct.cdf(t, df, nc) = 0.025 and 0.975 for nc. A root finder whose bracket reaches these nc compares with NaN and goes astray.
# There the true value is 0 to float64's accuracy, so replacing NaN by 0 is safe for t well below nc.
#
# Output seen (SciPy 1.17.1, NumPy 2.4.6, Python 3.11):
#   t 1, df 4: nc 36.0 finite, 39.0 nan, 40.0 nan, 41.0 nan, 45.0 finite
#   t 5, df 19: nc 51.0 finite, 51.5 nan, 53.0 nan, 60.0 finite
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check scipy==1.17.1 numpy
cat > "$folder/show.py" <<'PYTHON'
import math

from scipy import stats

for t, df, finite, lost in ((1, 4, (36.0, 45.0), (39.0, 40.0, 41.0)), (5, 19, (51.0, 60.0), (51.5, 53.0))):
    line = []
    for nc in sorted(finite + lost):
        share = stats.nct.cdf(t, df, nc)
        line.append(f"{nc} {'nan' if math.isnan(share) else 'finite'}")
        assert math.isnan(share) == (nc in lost), f"the behaviour has changed: cdf({t}, {df}, {nc}) = {share}"
    print(f"t {t}, df {df}: nc", ", ".join(line))
PYTHON
"$folder/venv/bin/python" "$folder/show.py"
