#!/usr/bin/env bash
# PEFT 0.21.2: add_weighted_adapter with combination_type="linear" does not average what LoRA adapters add to a weight. An
# adapter mixed with its own copy at ½ and ½ adds twice as much as before.
#
# A soup of experts (Rewarded Soups: the weights' mean under a preference) asks for w₁B₁A₁ + w₂B₂A₂. "linear" sums the factors,
# each scaled by √w: (√w₁B₁ + √w₂B₂)(√w₁A₁ + √w₂A₂), which holds the cross terms B₁A₂ and B₂A₁ besides. They vanish only at the
# ends, so a front of such soups has the experts' own points right and everything between them wrong, without an error or a
# warning. Of two independent random adapters the result is as far from the mean as the mean is long; "dare_linear" and
# "magnitude_prune" with density 1 give the same. "cat" is exact (its rank is the sum). "svd", the default, is the mean's best
# approximation of the larger rank.
#
# Output seen (torch 2.13.0, transformers 5.24.0, Python 3.11):
#   two adapters at 0.5, 0.5: |result − mean| / |mean| = 0.97 (linear), 0.34 (svd), 0.00 (cat)
#   an adapter and its copy at 0.5, 0.5: |result| / |adapter| = 2.00 (linear), 1.00 (svd), 1.00 (cat)
#   two adapters at 1, 0: |result − first| / |first| = 0.00 (linear)
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check peft==0.21.2 transformers==5.24.0 torch==2.13.0
cat > "$folder/show.py" <<'PYTHON'
import warnings

import peft
import torch
from transformers import LlamaConfig, LlamaForCausalLM

warnings.simplefilter("ignore")
torch.manual_seed(0)
torch.set_grad_enabled(False)
sizes = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
lora = peft.LoraConfig(r=4, lora_alpha=4, target_modules=["q_proj"], init_lora_weights=False)
model = peft.get_peft_model(LlamaForCausalLM(LlamaConfig(**sizes)), lora, adapter_name="a")
for name in ("b", "copy"):
    model.add_adapter(name, lora)
layer = model.base_model.model.model.layers[0].self_attn.q_proj
for factor in (layer.lora_A, layer.lora_B):
    factor["copy"].weight.copy_(factor["a"].weight)


def mix(names, weights, kind):
    name = f"{'_'.join(names)}_{kind}_{int(100 * weights[0])}"
    model.add_weighted_adapter(list(names), weights, name, combination_type=kind)
    return layer.get_delta_weight(name)


a, b = (layer.get_delta_weight(name) for name in "ab")
kinds = ("linear", "svd", "cat")
mean = (a + b) / 2
away = {kind: float((mix("ab", [0.5, 0.5], kind) - mean).norm() / mean.norm()) for kind in kinds}
longer = {kind: float(mix(("a", "copy"), [0.5, 0.5], kind).norm() / a.norm()) for kind in kinds}
end = float((mix("ab", [1.0, 0.0], "linear") - a).norm() / a.norm())
text = lambda values: ", ".join(f"{value:.2f} ({kind})" for kind, value in values.items())  # noqa: E731
print(f"two adapters at 0.5, 0.5: |result − mean| / |mean| = {text(away)}")
print(f"an adapter and its copy at 0.5, 0.5: |result| / |adapter| = {text(longer)}")
print(f"two adapters at 1, 0: |result − first| / |first| = {end:.2f} (linear)")
assert away["linear"] > 0.5 and away["svd"] < 0.5 and away["cat"] < 1e-5, "the behaviour has changed"
assert abs(longer["linear"] - 2) < 1e-4 and abs(longer["svd"] - 1) < 1e-4 and abs(longer["cat"] - 1) < 1e-4, "changed"
assert end < 1e-5
PYTHON
"$folder/venv/bin/python" "$folder/show.py"
