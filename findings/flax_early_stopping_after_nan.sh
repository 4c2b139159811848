#!/usr/bin/env bash
# flax 0.12.8: an EarlyStopping whose first metric is NaN never sees an improvement again: it stops a run that improves at every
# evaluation, after `patience` of them. NaN later on does no harm.
#
# The first metric becomes the best one, whatever it is, and no number is better than NaN. A reward, a correlation or a hypervolume
# that has no value before training is enough. best_metric=inf can be kept by passing on only finite metrics.
#
# Output seen (jax 0.10.2, CPU, Python 3.11), patience 2, lower is better; "!" marks where it would stop:
#   nan, 0.5, 0.4, 0.3, 0.2: improved 1 times, nan 0.5 0.4 0.3! 0.2!
#   0.6, nan, 0.4, 0.3, 0.2: improved 4 times, 0.6 nan 0.4 0.3 0.2
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check flax==0.12.8 jax==0.10.2 jaxlib==0.10.2
cat > "$folder/show.py" <<'PYTHON'
import math

from flax.training.early_stopping import EarlyStopping


def follow(metrics):
    stop, improved, shown = EarlyStopping(min_delta=0.0, patience=2), 0, []
    for metric in metrics:
        stop = stop.update(metric)
        improved += stop.has_improved
        shown.append(f"{metric}{'!' if stop.should_stop else ''}")
    print(f"{', '.join(map(str, metrics))}: improved {improved} times, {' '.join(shown)}")
    return improved, stop.should_stop


first = follow([math.nan, 0.5, 0.4, 0.3, 0.2])
later = follow([0.6, math.nan, 0.4, 0.3, 0.2])
assert first == (1, True) and later == (4, False), "the behaviour has changed"
PYTHON
JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/show.py"
