#!/usr/bin/env bash
# morl-baselines 1.3.0: filter_convex_dominated keeps policies that are best under no weights at all, so a convex coverage set made by
# it, or by ParetoArchive(convex_hull=True), has members that no user with linear preferences would ever choose.
#
# It takes every corner of the points' convex hull and leaves out those that another corner dominates. A hull has a lower side too: a
# corner between two others that lies below the line through them is dominated by neither, and stays. The front from which one picks
# by weights, its cardinality, and what is trained further from it are then too large. It depends on the other points: one that is
# bad in both objectives takes the corner's place on the lower side, and the result is right. Keep a point only if it
# is the best of all under some weights (a linear program; with two objectives the upper chain of the hull).
#
# Output seen (Python 3.11, NumPy 2.4.6, SciPy 1.17.1):
#   [[0.0, 1.0], [1.0, 0.0], [0.3, 0.3]]: kept 3, best under some of 1001 weights 2; the archive holds ['a', 'b', 'c']
#   and with [-1.0, -1.0]: kept 2
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check numpy==2.4.6 scipy==1.17.1
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps morl-baselines==1.3.0  # its fronts need NumPy and SciPy alone
cat > "$folder/show.py" <<'PYTHON'
import numpy as np
from morl_baselines.common.pareto import ParetoArchive, filter_convex_dominated

points = np.array([[0.0, 1.0], [1.0, 0.0], [0.3, 0.3]])
kept = filter_convex_dominated(points)
first = np.linspace(0, 1, 1001)
best = set(np.argmax(np.stack([first, 1 - first], 1) @ points.T, 1).tolist())
archive = ParetoArchive(convex_hull=True)
for name, point in zip("abc", points, strict=True):
    archive.add(name, point)
print(f"{points.tolist()}: kept {len(kept)}, best under some of 1001 weights {len(best)}; the archive holds {archive.individuals}")
worse = np.array([*points, [-1.0, -1.0]])
kept_with_worse = filter_convex_dominated(worse)
print(f"and with {worse[-1].tolist()}: kept {len(kept_with_worse)}")
assert [0.3, 0.3] in kept.tolist() and best == {0, 1} and archive.individuals == ["a", "b", "c"], "it filters otherwise now"
assert sorted(kept_with_worse.tolist()) == [[0.0, 1.0], [1.0, 0.0]], "it filters otherwise now"
PYTHON
"$folder/venv/bin/python" "$folder/show.py"
