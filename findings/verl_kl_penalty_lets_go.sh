#!/usr/bin/env bash
# verl 0.9.1: the KL penalty "low_var_kl" (k3), the default of the actor's KL loss, has no gradient for tokens on which policy and
# reference differ most: it holds a policy that is near and lets go of one that has gone.
#
# The estimate r - log r - 1 is clamped to 10 at the end, after the logarithm was clamped to 20. A token that the policy has made 12 nats
# more likely than the reference, as a degenerate answer's are under a reward that it exploits, is past that, and so is one that it made
# 2.7 nats less likely. The loss shows 10 for each, which looks like a penalty; its gradient is exactly 0. "k2" has no
# clamp and pulls the harder the farther, and "low_var_kl+" takes its gradient from that.
#
# Output seen (Python 3.11, torch 2.13.0 on a CPU), the penalty and its gradient at log p - log p_ref:
#   -4: low_var_kl 10.00, gradient -0.00; k2 gradient -4.00; low_var_kl+ gradient -4.00
#   -2: low_var_kl 4.39, gradient -6.39; k2 gradient -2.00; low_var_kl+ gradient -2.00
#   2: low_var_kl 1.14, gradient 0.86; k2 gradient 2.00; low_var_kl+ gradient 2.00
#   8: low_var_kl 7.00, gradient 1.00; k2 gradient 8.00; low_var_kl+ gradient 8.00
#   12: low_var_kl 10.00, gradient -0.00; k2 gradient 12.00; low_var_kl+ gradient 12.00
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check verl==0.9.1 torch==2.13.0
cat > "$folder/show.py" <<'PYTHON'
import torch
from verl.trainer.ppo.core_algos import kl_penalty

seen = {}
for gap in (-4.0, -2.0, 2.0, 8.0, 12.0):
    values, slopes = {}, {}
    for kind in ("low_var_kl", "k2", "low_var_kl+"):
        reference = torch.tensor([-14.0 if gap > 0 else -1.0])
        policy = (reference + gap).requires_grad_()
        value = kl_penalty(policy, reference, kind)
        value.sum().backward()
        values[kind], slopes[kind] = value.item(), policy.grad.item()
    seen[gap] = slopes
    others = "; ".join(f"{kind} gradient {slopes[kind]:.2f}" for kind in ("k2", "low_var_kl+"))
    print(f"{gap:g}: low_var_kl {values['low_var_kl']:.2f}, gradient {slopes['low_var_kl']:.2f}; {others}")
assert [seen[gap]["low_var_kl"] == 0 for gap in seen] == [True, False, False, False, True], "the penalty's gradient has changed"
assert all(slopes["k2"] == gap == slopes["low_var_kl+"] for gap, slopes in seen.items()), "the penalty's gradient has changed"
PYTHON
"$folder/venv/bin/python" "$folder/show.py" 2> "$folder/log" || { cat "$folder/log"; exit 1; }
