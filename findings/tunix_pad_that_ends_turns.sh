#!/usr/bin/env bash
# google-tunix 0.1.7: where the padding token is one that ends turns, as SmolLM2's is, prompts are scored with their turns' ends
# masked out and the positions after them moved.
#
# process_ids, through which GRPO, PPO and reward models read prompts and answers, takes every token that equals pad_id for padding.
# Many tokenizers pad with the token that also ends a turn (<|im_end|>, <|eot_id|>, </s>). It then stands in every prompt of a
# chat template, is not attended to, has no position of its own, and later tokens are a place nearer each time. The sampler
# drew the answer from the unmasked prompt, so ratios and divergences compare two different inputs.
#
# Output seen (Python 3.11, jax 0.10.2 on a CPU; token 2 ends turns; prompt 5 6 2 7 2, answer 8 9 2):
#   padding with 0: positions [0, 1, 2, 3, 4, 5, 6, 7], the last token sees places [0, 1, 2, 3, 4, 5, 6, 7]
#   padding with 2: positions [0, 1, 1, 2, 2, 3, 4, 4], the last token sees places [0, 1, 3, 5, 6]
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check google-tunix==0.1.7 jax==0.10.2 jaxlib==0.10.2
cat > "$folder/show.py" <<'PYTHON'
import jax.numpy as jnp
from tunix.rl import common

prompt, answer = jnp.array([[5, 6, 2, 7, 2]]), jnp.array([[8, 9, 2]])
seen = {}
for name, pad in (("padding with 0", 0), ("padding with 2", 2)):
    _, positions, mask, _ = common.process_ids(prompt, answer, pad, 2)
    seen[name] = positions[0].tolist(), jnp.nonzero(mask[0, -1])[0].tolist()
    print(f"{name}: positions {seen[name][0]}, the last token sees places {seen[name][1]}")
assert seen["padding with 0"] == (list(range(8)), list(range(8))), "another difference"
assert seen["padding with 2"][1] == [0, 1, 3, 5, 6], "it behaves otherwise now"
PYTHON
JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/show.py" 2> "$folder/log" || { cat "$folder/log"; exit 1; }
