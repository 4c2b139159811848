#!/usr/bin/env bash
# paretoset 1.2.5: paretorank minimises every objective as soon as there is a "diff" column: what is asked to be "max" ranks the worst
# rows first. paretoset, with the same arguments, keeps the best.
#
# Columns marked "diff" rank within groups (one front for each prompt set, seed or size). For them paretorank converts the columns and
# does not turn the signs of those to maximise, as it does without groups. It raises nothing, and its first rank looks like a front.
# Multiply rewards by -1 and ask for "min". A second way to the same error is an array of unsigned integers: there -0 is 0 and every
# other number wraps around, so paretoset takes 0 for the largest. Convert to a signed type or a float.
#
# Output seen (Python 3.11, NumPy 2.4.6, pandas 3.1.1), rewards to be maximised:
#   rewards [[0.1, 0.2], [0.5, 0.6], [0.9, 0.8]]
#   ranks without groups [3, 2, 1]; in one group [1, 2, 3]; the front in that group [False, False, True]
#   counts [[0, 0], [5, 9]]: the front as int64 [False, True], as uint8 [True, False]
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check paretoset==1.2.5 numpy==2.4.6 pandas==3.1.1
cat > "$folder/show.py" <<'PYTHON'
import numpy as np
import pandas as pd
from paretoset import paretorank, paretoset

rewards = np.array([[0.1, 0.2], [0.5, 0.6], [0.9, 0.8]])
table = pd.DataFrame({"model": 0, "seed": 0, "helpful": rewards[:, 0], "harmless": rewards[:, 1]})
grouped = ["diff", "diff", "max", "max"]
plain = paretorank(rewards, sense=["max", "max"]).tolist()
ranks, front = paretorank(table, sense=grouped).tolist(), paretoset(table, sense=grouped).tolist()
print(f"rewards {rewards.tolist()}")
print(f"ranks without groups {plain}; in one group {ranks}; the front in that group {front}")
counts = np.array([[0, 0], [5, 9]])
signed, unsigned = (paretoset(counts.astype(kind), sense=["max", "max"]).tolist() for kind in (np.int64, np.uint8))
print(f"counts {counts.tolist()}: the front as int64 {signed}, as uint8 {unsigned}")
assert plain == [3, 2, 1] and ranks == [1, 2, 3] and front == [False, False, True], "the ranks have changed"
assert signed == [False, True] and unsigned == [True, False], "unsigned numbers are taken otherwise now"
PYTHON
"$folder/venv/bin/python" "$folder/show.py"
