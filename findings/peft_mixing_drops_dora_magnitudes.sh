#!/usr/bin/env bash
# PEFT 0.21.2: add_weighted_adapter mixes DoRA adapters without their magnitudes, and lora_bias adapters without their biases.
#
# A DoRA adapter learns the length of each row of the weight beside its low-rank part. The mixture has use_dora too, but its
# lengths are those of the base model, and only the factors A and B are mixed, whatever the combination type. So even the
# weights 1 and 0 do not give the first adapter back; what training did to the lengths is lost. The biases that lora_bias=True
# trains become zero in the same way. Nothing is raised or warned, and for a soup of such experts every point of the front is
# wrong, its ends included. Merge each adapter into a copy of the model, and average the merged weights.
#
# Output seen (torch 2.13.0, transformers 5.24.0, Python 3.11), two adapters at 1, 0; |result − first| / |first|:
#   DoRA, lengths 1.5 times the base's: 0.33 (cat), 0.33 (svd), 0.33 (linear); lengths 1 times the base's
#   lora_bias: 0.08 (cat), 0.08 (svd), 0.08 (linear); largest bias 0
#   neither: 0.00 (cat), 0.00 (svd), 0.00 (linear)
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check peft==0.21.2 transformers==5.24.0 torch==2.13.0
cat > "$folder/show.py" <<'PYTHON'
import warnings

import torch
from peft import LoraConfig, get_peft_model

KINDS = "cat", "svd", "linear"
warnings.simplefilter("error")
torch.manual_seed(0)


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.query = torch.nn.Linear(32, 32)

    def forward(self, values):
        return self.query(values)


def mixed(**options):
    config = LoraConfig(target_modules=["query"], r=4, lora_alpha=8, **options)
    model = get_peft_model(Model(), config, "first")
    model.add_adapter("second", config)
    layer = model.base_model.model.query
    base = layer.base_layer.weight.norm(dim=1)
    for name in ("first", "second"):
        for factors in (layer.lora_A, layer.lora_B):
            torch.nn.init.normal_(factors[name].weight)
        if "use_dora" in options:
            layer.lora_magnitude_vector[name].weight.data *= 1.5
        if "lora_bias" in options:
            torch.nn.init.normal_(layer.lora_B[name].bias)
    values = torch.randn(16, 32)

    def output(name: str) -> torch.Tensor:
        model.set_adapter(name)
        return model(values).detach()

    first, found = output("first"), []
    for kind in KINDS:
        model.add_weighted_adapter(["first", "second"], [1.0, 0.0], kind, combination_type=kind)
        found.append(float((output(kind) - first).norm() / first.norm()))
    return found, layer, base


def text(found: list[float]) -> str:
    return ", ".join(f"{error:.2f} ({kind})" for kind, error in zip(KINDS, found))


dora, layer, base = mixed(use_dora=True)
lengths = [float((layer.lora_magnitude_vector[kind].weight.detach() / base).mean()) for kind in KINDS]
print(f"DoRA, lengths 1.5 times the base's: {text(dora)}; lengths {max(lengths):.3g} times the base's")
bias, layer, _ = mixed(lora_bias=True)
biases = [float(layer.lora_B[kind].bias.detach().abs().max()) for kind in KINDS]
print(f"lora_bias: {text(bias)}; largest bias {max(biases):g}")
neither, _, _ = mixed()
print(f"neither: {text(neither)}")
assert max(neither) < 1e-3, "the others behave otherwise now"
assert min(dora) > 0.1 and min(bias) > 0.01, "it behaves otherwise now"
assert all(abs(length - 1) < 1e-4 for length in lengths) and max(biases) == 0, "it behaves otherwise now"
PYTHON
"$folder/venv/bin/python" "$folder/show.py"
