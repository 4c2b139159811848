#!/usr/bin/env bash
# The embedded benchmark over several seeds: the share of the true hypervolume of each method, and its median.
#   bash launch/toy_seeds.sh [RUNS]      RUNS: runs/toy_seeds unless given; run again to go on
#   SEEDS="0 1 2 3 4"
# Run it in an environment that has the package (the quick start's: source .venv/bin/activate).
set -euo pipefail
cd "$(dirname "$0")/.."
runs="${1:-runs/toy_seeds}"
for seed in ${SEEDS:-0 1 2 3 4}; do
  python -m meal_jax.main --config=configs/toy.py --config.seed="$seed" --workdir="$runs/$seed"
done
python - "$runs" <<'PYTHON'
import json, pathlib, statistics, sys

runs = sorted(path for path in pathlib.Path(sys.argv[1]).iterdir() if (path / "static" / "pareto.json").exists())
for method, file in (("Meal", "pareto.json"), ("static", "static/pareto.json")):
    shares = [json.loads((run / file).read_text())["share_of_true_hypervolume"] for run in runs]
    print(f"{method:8} median {statistics.median(shares):.3f}   by seed", *(f"{share:.3f}" for share in shares))
PYTHON
