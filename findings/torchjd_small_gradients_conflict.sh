#!/usr/bin/env bash
# torchjd 0.18.0: of small gradients UPGrad and DualProj return the plain mean, which may go against an objective, the one thing they
# are there to prevent. The same gradients 10 times larger give a direction that harms none.
#
# Both divide the matrix of the gradients' products by its trace, the sum of their squared norms. Where that is below norm_eps, 1e-4 by
# default and described as avoiding a division by zero, they put a matrix of zeros in its place, in which no two
# objectives conflict. Two gradients of norm 0.005 are enough: late in training, with losses divided by tokens or
# by accumulation steps, or beyond a warm-up of adapters. No warning tells; MGDA is not affected. Give norm_eps=0 to the
# projector (then a zero gradient is NaN), or multiply the losses by a constant and divide the result.
#
# Output seen (Python 3.11, torch 2.13.0 on a CPU, quadprog 0.1.14, qpsolvers 4.13.0), gradients s·(1, 0) and s·(-0.9, 0.2), what a step
# gains in each objective, divided by s²:
#   s = 0.05: UPGrad gains [0.024, 0.020], DualProj gains [0.024, -0.000]
#   s = 0.005: UPGrad gains [0.050, -0.025], DualProj gains [0.050, -0.025]
#   s = 0.005 with norm_eps=0: UPGrad gains [0.024, 0.020], DualProj gains [0.024, -0.000]
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    torchjd==0.18.0 torch==2.13.0 numpy==2.4.6 quadprog==0.1.14 qpsolvers==4.13.0 scipy==1.17.1
cat > "$folder/show.py" <<'PYTHON'
import torch
from torchjd.aggregation import DualProj, UPGrad
from torchjd.linalg import QuadprogProjector

gradients, gains = torch.tensor([[1.0, 0.0], [-0.9, 0.2]]), {}
for scale, name, options in (
    (0.05, "s = 0.05", {}),
    (0.005, "s = 0.005", {}),
    (0.005, "s = 0.005 with norm_eps=0", {"projector": QuadprogProjector(norm_eps=0.0)}),
):
    for method in (UPGrad, DualProj):
        gains[name, method] = (gradients @ method(**options)(scale * gradients) / scale).tolist()
    told = (f"{method.__name__} gains [{', '.join(f'{gain:.3f}' for gain in gains[name, method])}]" for method in (UPGrad, DualProj))
    print(f"{name}: {', '.join(told)}")
for (name, _), found in gains.items():
    harmed = min(found) < -0.02
    assert harmed == (name == "s = 0.005"), "it aggregates otherwise now"
PYTHON
"$folder/venv/bin/python" "$folder/show.py"
