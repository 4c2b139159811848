#!/usr/bin/env bash
# ml_dtypes 0.6.0 with NumPy 2.4.6: a NaN in a bfloat16 or float8 array leaves np.sort's output out of order, np.unique's with
# repeats, and np.nansum and np.nanmean give NaN, as if they did not know one. np.nanmax and np.isnan do.
#
# NumPy puts NaN last when it sorts its own types; the comparison that ml_dtypes registers calls it neither less nor more than
# anything, so what lies on its two sides is never compared. The nan-functions look at NumPy's kinds of types, among which these
# are not ("V"), and so replace nothing. All of them answer without a warning. Rankings, percentiles and means of rewards
# that came out of JAX in bfloat16 are to be taken in float32.
#
# Output seen (CPU, Python 3.11), of [3, nan, 1, 2, 3, 1]:
#   float16: sorted [1, 1, 2, 3, 3, nan], argsort [2, 5, 3, 0, 4, 1], 4 unique, nansum 10.0, nanmean 2.0
#   bfloat16: sorted [3, nan, 1, 1, 2, 3], argsort [0, 1, 2, 5, 3, 4], 5 unique, nansum nan, nanmean nan
#   float8_e5m2: sorted [3, nan, 1, 1, 2, 3], argsort [0, 1, 2, 5, 3, 4], 5 unique, nansum nan, nanmean nan
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check ml_dtypes==0.6.0 numpy==2.4.6
cat > "$folder/show.py" <<'PYTHON'
import ml_dtypes
import numpy as np

for dtype in (np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e5m2):
    x = np.array([3, np.nan, 1, 2, 3, 1], dtype)
    ordered, unique = np.sort(x).astype(float), np.unique(x)
    total, mean = float(np.nansum(x)), float(np.nanmean(x))
    shown = ", ".join("nan" if np.isnan(value) else f"{value:.0f}" for value in ordered)
    print(f"{np.dtype(dtype).name}: sorted [{shown}], argsort {np.argsort(x).tolist()}, {len(unique)} unique, nansum {total}, "
          f"nanmean {mean}")
    numbers = ordered[~np.isnan(ordered)]
    right = bool((np.diff(numbers) >= 0).all()), len(unique) == 4, total == 10, mean == 2
    assert right == (dtype is np.float16,) * 4, "the behaviour has changed"
    assert float(np.nanmax(x)) == 3 and np.isnan(x).sum() == 1
PYTHON
"$folder/venv/bin/python" "$folder/show.py"
