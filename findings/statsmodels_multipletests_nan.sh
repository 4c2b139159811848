#!/usr/bin/env bash
# statsmodels 0.15.0: one p-value of NaN in a family changes what multipletests says of the others, differently by method.
#
# A test whose differences are all zero has no p-value. "holm" and "bonferroni" count it as a test, so that the others' are
# corrected for one more. "fdr_bh" calls two hypotheses rejected while every corrected p-value is NaN. "hommel" rejects none.
# Nothing is said in any case.
#
# Output seen (Python 3.11, scipy 1.17.1, numpy 2.4.6; p-values 0.01, 0.04, 0.001, without and with a NaN between them):
#   holm: [True, True, True] [0.02, 0.04, 0.003]; with a NaN [True, False, True] [0.03, 0.08, 0.004]
#   bonferroni: [True, False, True] [0.03, 0.12, 0.003]; with a NaN [True, False, True] [0.04, 0.16, 0.004]
#   fdr_bh: [True, True, True] [0.015, 0.04, 0.003]; with a NaN [True, False, True] [nan, nan, nan]
#   hommel: [True, True, True] [0.02, 0.04, 0.003]; with a NaN [False, False, False] [nan, nan, nan]
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check statsmodels==0.15.0 scipy==1.17.1 numpy==2.4.6
cat > "$folder/show.py" <<'PYTHON'
import warnings

import numpy as np
from statsmodels.stats.multitest import multipletests

warnings.simplefilter("error")
without, within = np.array([0.01, 0.04, 0.001]), np.array([0.01, np.nan, 0.04, 0.001])
seen = {}
for method in ("holm", "bonferroni", "fdr_bh", "hommel"):
    told = []
    for values in (without, within):
        rejected, corrected = multipletests(values, method=method)[:2]
        known = ~np.isnan(values)
        told.append((rejected[known].tolist(), corrected[known].round(4).tolist()))
    seen[method] = told
    print(f"{method}: {told[0][0]} {told[0][1]}; with a NaN {told[1][0]} {told[1][1]}")
assert seen["holm"][0] != seen["holm"][1], "NaN is left out now"
assert any(seen["fdr_bh"][1][0]) and np.isnan(seen["fdr_bh"][1][1]).all(), "fdr_bh treats it otherwise now"
assert any(seen["hommel"][0][0]) and not any(seen["hommel"][1][0]), "hommel treats it otherwise now"
PYTHON
"$folder/venv/bin/python" "$folder/show.py"
