#!/usr/bin/env bash
# mabwiser 2.7.4: under UCB1 an arm without an observation is never played where rewards are positive. Arms that are added
# later, as add_arm is for, get no turn.
#
# UCB1 (Auer et al. 2002) first plays every arm once: an arm that was not tried has no bound. Here its expectation is the 0
# that every arm is set up with, below the mean plus bound of any arm with a positive reward, and predict takes the largest.
# Of two preference policies at 0.2 and 0.1 a third, whose reward would be 1, is not chosen once in a thousand turns. fit warns
# of nothing. Give each new arm one observation of your own before predict, or take ThompsonSampling, which tries it.
#
# Output seen (numpy 2.4.6, Python 3.11):
#   UCB1: expectations after fit old 1.3, older 1.2, new 0.0; turns of 1000: old 753, older 247, new 0
#   ThompsonSampling: new among the arms played: True
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check mabwiser==2.7.4 numpy==2.4.6
cat > "$folder/show.py" <<'PYTHON'
from collections import Counter

from mabwiser.mab import MAB, LearningPolicy

REWARD = {"old": 0.2, "older": 0.1, "new": 1.0}


def play(policy, reward, turns):
    mab = MAB(arms=["old", "older"], learning_policy=policy, seed=1)
    mab.fit(["old", "older"] * 3, [reward("old"), reward("older")] * 3)
    mab.add_arm("new")
    before, played = mab.predict_expectations(), Counter()
    for _ in range(turns):
        arm = mab.predict()
        played[arm] += 1
        mab.partial_fit([arm], [reward(arm)])
    return before, played


before, played = play(LearningPolicy.UCB1(alpha=1.0), REWARD.get, 1000)
said = ", ".join(f"{arm} {before[arm]:.1f}" for arm in REWARD)
print(f"UCB1: expectations after fit {said}; turns of 1000: {', '.join(f'{arm} {played[arm]}' for arm in REWARD)}")
_, thompson = play(LearningPolicy.ThompsonSampling(), lambda arm: int(arm == "new"), 50)
print(f"ThompsonSampling: new among the arms played: {thompson['new'] > 0}")
assert before["new"] == 0 and played["new"] == 0 and thompson["new"] > 0, "untried arms are played now"
PYTHON
"$folder/venv/bin/python" "$folder/show.py"
