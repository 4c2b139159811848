#!/usr/bin/env bash
# crowd-kit 1.4.2: NoisyBradleyTerry does not find out who is reliable: a worker who tosses a coin gets a skill above those who are
# right in 19 of 20 comparisons, and every result depends on the order of the rows.
#
# The derivatives with respect to a worker's skill and bias are set by each of its comparisons in turn and not added up, so only the
# last row of each worker counts in them, though the function that they belong to counts all. The optimiser stops far
# from the maximum; a larger n_iter changes nothing, and nothing is raised or warned. Skills are what one sets bad workers aside by,
# and the scores are fitted with them. The same likelihood is fitted well by an optimiser that is given no derivatives.
#
# Output seen (Python 3.11, NumPy 2.4.6, SciPy 1.17.1, pandas 3.1.1), skills of four workers with 60 comparisons of six items each:
#   right answers:      coin 0.42, ann 0.95, bob 0.95, eve 0.97
#   as they come:       coin 0.72, ann 0.63, bob 0.66, eve 0.52
#   in reverse:         coin 0.80, ann 0.64, bob 0.57, eve 0.52
#   maximum likelihood: coin 0.01, ann 0.90, bob 0.99, eve 0.96
#   scores of the items, as they come / in reverse: 0.97 0.91 0.85 0.50 0.16 0.02 / 1.00 1.00 0.99 0.98 0.96 0.96
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    numpy==2.4.6 pandas==3.1.1 scipy==1.17.1 scikit-learn==1.9.1 nltk==3.10.4 attrs==26.1.0 tqdm==4.70.1
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps crowd-kit==1.4.2  # its rankings need no more than these
cat > "$folder/show.py" <<'PYTHON'
import itertools
import warnings

import numpy as np
import pandas as pd
from crowdkit.aggregation import NoisyBradleyTerry
from scipy.optimize import minimize
from scipy.special import expit

warnings.simplefilter("error")
random, rows, workers = np.random.default_rng(1), [], ["coin", "ann", "bob", "eve"]
for worker, accuracy in zip(workers, (0.5, 0.95, 0.95, 0.95), strict=True):
    for better, worse in list(itertools.combinations("ABCDEF", 2)) * 4:
        left, right = random.permutation([better, worse])
        rows.append((worker, left, right, better if random.random() < accuracy else worse))
data = pd.DataFrame(rows, columns=["worker", "left", "right", "label"])
who, left, right = data.worker.map(workers.index).to_numpy(), *(data[side].map("ABCDEF".index).to_numpy() for side in ("left", "right"))
sign = np.where(data.label == data.left, 1, -1)


def loss(x):  # the model's likelihood, with a slight pull to 0 so that it has one maximum
    scores, biases, skills = x[:6], x[6:10], expit(x[10:])
    chance = skills[who] * expit(sign * (scores[left] - scores[right])) + (1 - skills[who]) * expit(sign * biases[who])
    return -np.log(chance).sum() + 0.01 * (x**2).sum()


def show(name, skills):
    print(f"{name + ':':19} " + ", ".join(f"{worker} {skills[worker]:.2f}" for worker in workers))
    return skills


correct = show("right answers", (data.label == data[["left", "right"]].min(axis=1)).groupby(data.worker).mean())
models = [NoisyBradleyTerry().fit(ordered) for ordered in (data, data[::-1])]
skills = [show(name, model.skills_) for name, model in zip(("as they come", "in reverse"), models, strict=True)]
best = show("maximum likelihood", pd.Series(expit(minimize(loss, np.zeros(14)).x[10:]), workers))
scores = [model.scores_.sort_index() for model in models]
print("scores of the items, as they come / in reverse: " + " / ".join(" ".join(f"{s:.2f}" for s in each) for each in scores))
longer = NoisyBradleyTerry(n_iter=10000).fit(data)
assert best["coin"] < 0.1 and (best[["ann", "bob", "eve"]] > 0.8).all() and (correct[["ann", "bob", "eve"]] > 0.94).all()
assert all(each["coin"] > each["ann"] > each["eve"] for each in skills), "it behaves otherwise now"
assert np.allclose(longer.skills_, models[0].skills_) and abs(scores[0]["F"] - scores[1]["F"]) > 0.5, "it behaves otherwise now"
PYTHON
"$folder/venv/bin/python" "$folder/show.py"
