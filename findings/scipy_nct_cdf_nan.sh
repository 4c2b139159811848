#!/usr/bin/env bash
# SciPy 1.17.1: stats.nct.cdf is NaN for some ordinary arguments, and finite for their neighbours.
#
# At 4 degrees of freedom and t = 1 the share below t is 0 or tiny for every noncentrality from 38 on. scipy gives 0 or tiny
# numbers at some of them and NaN at others, between. The interval of a standardised effect size is found by solving
# nct.cdf(t, df, nc) = 0.025 and 0.975 for nc. A root finder whose bracket reaches such an nc compares with NaN and goes astray.
# The normal approximation, or a bracket that starts near t, avoids it.
#
# Output seen (SciPy 1.17.1, Python 3.11):
#   t 1, df 4: nc 38.0 finite, 38.5 nan, 39.0 nan, 41.0 nan, 41.5 finite
#   t 5, df 19: nc 51.0 finite, 51.5 nan, 52.0 finite, 53.0 nan
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check scipy==1.17.1 numpy
cat > "$folder/show.py" <<'PYTHON'
import math

from scipy import stats

for t, df, finite, lost in ((1, 4, (38.0, 41.5), (38.5, 39.0, 41.0)), (5, 19, (51.0, 52.0), (51.5, 53.0))):
    line = []
    for nc in sorted(finite + lost):
        share = stats.nct.cdf(t, df, nc)
        line.append(f"{nc} {'nan' if math.isnan(share) else 'finite'}")
        assert math.isnan(share) == (nc in lost), f"the behaviour has changed: cdf({t}, {df}, {nc}) = {share}"
    print(f"t {t}, df {df}: nc", ", ".join(line))
PYTHON
"$folder/venv/bin/python" "$folder/show.py"
