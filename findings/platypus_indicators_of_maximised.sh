#!/usr/bin/env bash
# platypus-opt 1.4.1: of objectives that are maximised, Hypervolume leaves out every point that is better than the bounds, and
# EpsilonIndicator grows, where it should shrink, as a front gets better.
#
# A problem's directions say what is maximised, and the hypervolume otherwise takes them into account. Points outside of the bounds are
# dropped if they are above them, before maximised objectives are told from minimised ones: so a policy that beats the reference set in one
# reward counts nothing, and a front of such policies has a hypervolume of 0. The ε of a point that dominates
# the whole reference front is worse than that of a point which it dominates. Minimised objectives are measured right: negate
# rewards, and minimise them.
#
# Output seen (Python 3.11), two objectives, reference front (0, 1), (0.7, 0.7), (1, 0), bounds 0 and 1; for rewards r to be maximised
# or, with the reference front negated too, -r to be minimised:
#   r = (0.3, 0.3): maximised hypervolume 0.09, epsilon 0.30; negated and minimised 0.09, 0.70
#   r = (0.9, 0.9): maximised hypervolume 0.81, epsilon 0.90; negated and minimised 0.81, 0.10
#   r = (1.2, 0.9): maximised hypervolume 0.00, epsilon 1.20; negated and minimised 0.90, 0.10
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check platypus-opt==1.4.1
cat > "$folder/show.py" <<'PYTHON'
from platypus import Direction, EpsilonIndicator, Hypervolume, Problem, Solution


def solution(problem: Problem, sign: int, rewards: tuple[float, float]) -> Solution:
    made = Solution(problem)
    made.objectives[:] = [sign * reward for reward in rewards]
    made.evaluated = True
    return made


def measured(direction: Direction, sign: int, rewards: tuple[float, float]) -> tuple[float, float]:
    problem = Problem(0, 2)
    problem.directions[:] = [direction, direction]
    reference = [solution(problem, sign, point) for point in ((0.0, 1.0), (0.7, 0.7), (1.0, 0.0))]
    front = [solution(problem, sign, rewards)]
    return Hypervolume(reference_set=reference).calculate(front), EpsilonIndicator(reference).calculate(front)


seen = {}
for rewards in ((0.3, 0.3), (0.9, 0.9), (1.2, 0.9)):
    most, least = measured(Direction.MAXIMIZE, 1, rewards), measured(Direction.MINIMIZE, -1, rewards)
    seen[rewards] = [round(value, 6) for value in (*most, *least)]
    print(f"r = {rewards}: maximised hypervolume {most[0]:.2f}, epsilon {most[1]:.2f}; negated and minimised {least[0]:.2f}, {least[1]:.2f}")
assert seen[0.3, 0.3] == [0.09, 0.3, 0.09, 0.7] and seen[0.9, 0.9] == [0.81, 0.9, 0.81, 0.1], "it measures otherwise now"
assert seen[1.2, 0.9] == [0, 1.2, 0.9, 0.1], "it measures otherwise now"
PYTHON
"$folder/venv/bin/python" "$folder/show.py"
