#!/usr/bin/env bash
# orbax-checkpoint 0.12.8: one NaN among the metrics makes a CheckpointManager with best_fn delete the best checkpoint, and best_step()
# name another.
#
# Checkpoints are kept by sorting their metrics. NaN compares false with everything, so a checkpoint that came before it in the sorted
# list stays below it, however good. An evaluation that gives NaN once, between two saves, is enough; NaN in mode "min" does
# the same. Nothing is logged. best_fn can return -inf (or inf) in NaN's place.
#
# Output seen (jax 0.10.2, CPU, Python 3.11), two kept, the largest metric the best:
#   metrics 0.1, 0.5, 0.2, 0.3: steps [1, 3] kept, best 1
#   metrics 0.1, 0.5, nan, 0.3: steps [2, 3] kept, best 3
#   the same with -inf for NaN: steps [1, 3] kept, best 1
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check orbax-checkpoint==0.12.8 jax==0.10.2 jaxlib==0.10.2
cat > "$folder/show.py" <<'PYTHON'
import math
import sys
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp

folder = Path(sys.argv[1])


def kept(name, metrics, best=lambda metrics: metrics["score"]):
    options = ocp.CheckpointManagerOptions(max_to_keep=2, best_fn=best, best_mode="max")
    with ocp.CheckpointManager(folder / name, options=options) as manager:
        for step, score in enumerate(metrics):
            manager.save(step, args=ocp.args.StandardSave({"weights": np.full(2, step)}), metrics={"score": score})
        manager.wait_until_finished()
        return sorted(manager.all_steps()), manager.best_step()


numbers = kept("numbers", [0.1, 0.5, 0.2, 0.3])
print(f"metrics 0.1, 0.5, 0.2, 0.3: steps {numbers[0]} kept, best {numbers[1]}")
unknown = kept("unknown", [0.1, 0.5, math.nan, 0.3])
print(f"metrics 0.1, 0.5, nan, 0.3: steps {unknown[0]} kept, best {unknown[1]}")
lowest = lambda metrics: -math.inf if math.isnan(metrics["score"]) else metrics["score"]
guarded = kept("guarded", [0.1, 0.5, math.nan, 0.3], lowest)
print(f"the same with -inf for NaN: steps {guarded[0]} kept, best {guarded[1]}")
assert numbers == guarded == ([1, 3], 1) and unknown == ([2, 3], 3), "the behaviour has changed"
PYTHON
JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/show.py" "$folder" 2> "$folder/log" || { cat "$folder/log"; exit 1; }
