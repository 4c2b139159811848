#!/usr/bin/env bash
# jmetalpy 1.9.0: InvertedGenerationalDistance shrinks with the number of points of the reference front: a front that is 0.1 away from
# every reference point has an IGD of 0.032 with 10 of them and of 0.003 with 1,000.
#
# Its documentation says the average distance from each reference point to the closest solution. It computes the root of the sum of
# squares over their number, which falls with the root of that number. So its values cannot be compared with those of other
# libraries, with a paper's, or between problems whose reference fronts are sampled unequally, and a threshold holds for one
# sampling. `pow`, "2.0 for Euclidean distance", does not choose the distance, which is always Euclidean, but this root: pow=1 gives
# the average. GenerationalDistance, beside it, is an average.
#
# Output seen (Python 3.11, NumPy 2.4.6, SciPy 1.17.1), a front 0.1 behind the whole reference front:
#   10 reference points: GD 0.1000, IGD 0.0316, IGD with pow=1 0.1000
#   100 reference points: GD 0.1000, IGD 0.0100, IGD with pow=1 0.1000
#   1000 reference points: GD 0.1000, IGD 0.0032, IGD with pow=1 0.1000
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check numpy==2.4.6 scipy==1.17.1 moocore==0.3.2
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps jmetalpy==1.9.0  # its indicators need no more than these
cat > "$folder/show.py" <<'PYTHON'
import numpy as np
from jmetal.core.quality_indicator import GenerationalDistance, InvertedGenerationalDistance

seen = {}
for count in (10, 100, 1_000):
    first = np.linspace(0, 50, count)  # points further from each other than from the front
    reference = np.stack([first, np.zeros(count)], 1) * 10_000
    front = reference + [0, 0.1]
    indicators = (GenerationalDistance(reference), InvertedGenerationalDistance(reference), InvertedGenerationalDistance(reference, pow=1))
    seen[count] = [float(indicator.compute(front)) for indicator in indicators]
    generational, inverted, average = seen[count]
    print(f"{count} reference points: GD {generational:.4f}, IGD {inverted:.4f}, IGD with pow=1 {average:.4f}")
for count, (generational, inverted, average) in seen.items():
    assert np.allclose([generational, average], 0.1) and np.isclose(inverted, 0.1 / count**0.5), "it measures otherwise now"
PYTHON
"$folder/venv/bin/python" "$folder/show.py"
