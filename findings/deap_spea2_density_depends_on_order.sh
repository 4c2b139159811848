#!/usr/bin/env bash
# deap 1.4.4: selSPEA2 chooses by the order of the list. Of equally strong individuals it should keep those in empty regions;
# it keeps them if they stand early in the list, and takes crowded ones instead if they stand late.
#
# Where fewer than k individuals are nondominated, SPEA2 fills up by the number of those that dominate and, among equals, by the
# distance to the kth nearest neighbour. selSPEA2 takes only the distances to individuals later in the list and 0 for all others,
# so the last ones have many neighbours at distance 0 and look crowded, wherever they are. Nothing is raised, and the
# seed changes nothing. Children are usually put after their parents, so theirs are the regions that are lost. Where more than k
# are nondominated, its truncation has all distances. tools.selNSGA2 and selNSGA3 do not have this.
#
# Output seen (Python 3.11, NumPy 2.4.6, moocore 0.3.2); minimised, (0, 0) dominates two far points and a crowd of 13 around (5, 5):
#   far points first: (0, 0), (1, 9), (9, 1)
#   far points last:  (0, 0), (4.94, 5.06), (4.95, 5.05)
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check deap==1.4.4 moocore==0.3.2 numpy==2.4.6
cat > "$folder/show.py" <<'PYTHON'
import random

from deap import base, creator, tools

creator.create("Fitness", base.Fitness, weights=(-1.0, -1.0))
creator.create("Individual", list, fitness=creator.Fitness)


def select(points, k):
    individuals = [creator.Individual(point) for point in points]
    for individual in individuals:
        individual.fitness.values = tuple(individual)
    return sorted(tuple(individual) for individual in tools.selSPEA2(individuals, k))


best, far = [(0, 0)], [(1, 9), (9, 1)]
crowd = [(5 + i / 100, 5 - i / 100) for i in range(-6, 7)]
for seed in range(5):
    random.seed(seed)
    first, last = select(best + far + crowd, 3), select(best + crowd + far, 3)
    if seed == 0:
        print("far points first:", ", ".join(map(str, first)))
        print("far points last: ", ", ".join(map(str, last)))
    assert first == best + far, "it selects otherwise now"
    assert last == [(0, 0), (4.94, 5.06), (4.95, 5.05)], "it selects otherwise now"
PYTHON
"$folder/venv/bin/python" "$folder/show.py"
