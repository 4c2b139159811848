#!/usr/bin/env bash
# krippendorff 0.9.0: ratings in an unsigned NumPy type (uint8) have another alpha at the levels "interval" and "ratio": grades
# from 1 to 5 by five raters, whose alpha is 0.76, get 0.31.
#
# The distance of two ratings is subtracted in the ratings' own type and converted to float64 after that. In uint8 2 - 3 is
# 255, so a disagreement of one grade counts as 1 in one direction and as 65025 in the other. uint16 and uint32 differ in the
# same way, and int8 overflows for scores on a scale from -100 to 100. int64 is right, and "ordinal" is right in every type.
# Nothing is raised or warned. Convert ratings to float64 first.
#
# Output seen (Python 3.11, NumPy 2.4.6):
#   grades 1 to 5: by hand 0.7598
#     int64: interval 0.7598, ratio 0.6987, ordinal 0.7574
#     uint8: interval 0.3106, ratio 0.1393, ordinal 0.7574
#     uint16: interval 0.3147, ratio 0.1439, ordinal 0.7574
#     uint32: interval 0.3147, ratio 0.1440, ordinal 0.7574
#   scores -100 to 100: by hand 0.7288
#     int64: interval 0.7288, ratio 0.7543, ordinal 0.7231
#     int8: interval 0.6265, ratio 0.4581, ordinal 0.7231
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check krippendorff==0.9.0 "numpy<2.5"
cat > "$folder/show.py" <<'PYTHON'
import warnings

import numpy as np
from krippendorff import alpha

warnings.simplefilter("error")
rng = np.random.default_rng(0)
quality = rng.integers(1, 6, 60)
grades = np.clip(quality + rng.integers(-1, 2, (5, 60)), 1, 5)  # five raters, one row each
scores = np.clip(40 * (grades - 3) + rng.integers(-20, 21, grades.shape), -100, 100)


def by_hand(ratings: np.ndarray) -> float:
    """Alpha at the level "interval", of ratings without gaps: one less the variance within units over the variance of all."""
    return 1 - ratings.var(axis=0, ddof=1).mean() / ratings.var(ddof=1)


def of_type(ratings: np.ndarray, kind: str) -> list[float]:
    found = [float(alpha(ratings.astype(kind), level_of_measurement=level)) for level in ("interval", "ratio", "ordinal")]
    print(f"  {kind}: interval {found[0]:.4f}, ratio {found[1]:.4f}, ordinal {found[2]:.4f}")
    return found


print(f"grades 1 to 5: by hand {by_hand(grades):.4f}")
right, *unsigned = [of_type(grades, kind) for kind in ("int64", "uint8", "uint16", "uint32")]
assert np.isclose(right[0], by_hand(grades)), "the interval level is another one now"
assert all(abs(found[0] - right[0]) > 0.1 and abs(found[1] - right[1]) > 0.1 for found in unsigned), "it behaves otherwise now"
assert all(np.isclose(found[2], right[2]) for found in unsigned), "the ordinal level behaves otherwise now"
print(f"scores -100 to 100: by hand {by_hand(scores):.4f}")
wide, narrow = (of_type(scores, kind)[0] for kind in ("int64", "int8"))
assert np.isclose(wide, by_hand(scores)) and abs(narrow - wide) > 0.05, "int8 behaves otherwise now"
PYTHON
"$folder/venv/bin/python" "$folder/show.py" 2> "$folder/log" || { cat "$folder/log"; exit 1; }
