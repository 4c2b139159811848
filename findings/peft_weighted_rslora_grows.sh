#!/usr/bin/env bash
# PEFT 0.21.2: of rsLoRA adapters, add_weighted_adapter makes one that is √rank times too strong: 2.8 times for two of rank 4.
#
# The new adapter's factors hold the old ones with their scales, so its own scale has to be 1. add_weighted_adapter sets
# lora_alpha to the new rank for that, but takes over use_rslora, under which the scale is alpha / √rank and not alpha / rank.
# So every mixture is multiplied by √rank: the rank of all together under "cat", that of one under "svd" and "linear". Even the
# weights 1 and 0 do not give the first adapter back. At rank 64, experts mixed by "cat" act eleven times too strongly. Nothing
# is raised or warned. Divide the weights by that root; under "linear" so much is right only at the ends.
#
# Output seen (torch 2.13.0, transformers 5.24.0, Python 3.11), two adapters of rank 4 at 1, 0: |result| / |first adapter|
#   use_rslora=False: cat 1.00, svd 1.00, linear 1.00
#   use_rslora=True: cat 2.83, svd 2.00, linear 2.00
#   use_rslora=True, weights divided: cat 1.00, svd 1.00, linear 1.00
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check peft==0.21.2 transformers==5.24.0 torch==2.13.0
cat > "$folder/show.py" <<'PYTHON'
import math
import warnings

import torch
from peft import LoraConfig, get_peft_model

RANK = 4
KINDS = {"cat": 2 * RANK, "svd": RANK, "linear": RANK}
torch.manual_seed(0)


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.query = torch.nn.Linear(32, 32, bias=False)

    def forward(self, values):
        return self.query(values)


def ratios(rslora: bool, divide: bool) -> dict:
    config = LoraConfig(target_modules=["query"], r=RANK, lora_alpha=8, use_rslora=rslora)
    model = get_peft_model(Model(), config, "first")
    model.add_adapter("second", config)
    layer = model.base_model.model.query
    for factors in (layer.lora_A, layer.lora_B):
        for name in ("first", "second"):
            torch.nn.init.normal_(factors[name].weight)
    values = torch.randn(16, 32)

    def added(name: str) -> torch.Tensor:
        model.set_adapter(name)
        return (model(values) - layer.base_layer(values)).detach()

    first, found = added("first"), {}
    for kind, rank in KINDS.items():
        weight = 1 / math.sqrt(rank) if divide else 1.0
        model.add_weighted_adapter(["first", "second"], [weight, 0.0], kind, combination_type=kind)
        found[kind] = float(added(kind).norm() / first.norm())
    return found


def text(found: dict) -> str:
    return ", ".join(f"{kind} {ratio:.2f}" for kind, ratio in found.items())


warnings.simplefilter("error")
plain, grown, divided = ratios(False, False), ratios(True, False), ratios(True, True)
print(f"use_rslora=False: {text(plain)}")
print(f"use_rslora=True: {text(grown)}")
print(f"use_rslora=True, weights divided: {text(divided)}")
assert all(abs(plain[kind] - 1) < 1e-3 and abs(divided[kind] - 1) < 1e-3 for kind in KINDS), "the others behave otherwise now"
assert all(abs(grown[kind] - math.sqrt(rank)) < 1e-3 for kind, rank in KINDS.items()), "it behaves otherwise now"
PYTHON
"$folder/venv/bin/python" "$folder/show.py"
