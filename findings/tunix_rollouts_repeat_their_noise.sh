#!/usr/bin/env bash
# google-tunix 0.1.7: without a seed in RolloutConfig, its default, every rollout of the vanilla engine draws with the same key.
#
# The sampler takes PRNGKey(0) where no seed is given, and neither GRPO's learner nor the cluster gives one. At a temperature of
# 0.9 answers look random and differ within a batch, but the noise at a row and a place is that of every step before: a prompt
# that comes again under the same weights has the same answers, and a training run explores one draw of noise. A seed in
# RolloutConfig only fixes another key. To have new noise, the configuration's seed has to be changed before every call.
#
# Output seen (Python 3.11, jax 0.10.2 on a CPU; a toy model of the package's tests, two rows of one prompt, 8 tokens):
#   first call: [[14], [20, 20, 20, 20, 0, 20, 20, 17]]
#   second call: [[14], [20, 20, 20, 20, 0, 20, 20, 17]]
#   with a seed: [[0, 0, 20, 0, 3, 0, 0, 0], [20, 20, 14, 13, 7, 7, 15, 16]]
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check google-tunix==0.1.7 jax==0.10.2 jaxlib==0.10.2
cat > "$folder/show.py" <<'PYTHON'
import jax
from flax import nnx
from tunix.generate import tokenizer_adapter
from tunix.rl.rollout import base_rollout, vanilla_rollout
from tunix.tests import test_common

vocabulary = test_common.MockVocab()
config = test_common.ModelConfig(vocab_size=vocabulary.GetPieceSize())
rollout = vanilla_rollout.VanillaRollout(
    test_common.ToyTransformer(config=config, rngs=nnx.Rngs(0)),
    tokenizer_adapter.TokenizerAdapter(vocabulary),
    base_rollout.CacheConfig(cache_size=64, num_layers=4, num_kv_heads=4, head_dim=16),
)


def tokens(**settings):
    config = base_rollout.RolloutConfig(max_tokens_to_generate=8, max_prompt_length=8, temperature=1.0, **settings)
    return [[int(token) for token in row] for row in rollout.generate(["input string"] * 2, config).tokens]


first, second, seeded = tokens(), tokens(), tokens(seed=jax.random.PRNGKey(1))
print("first call:", first)
print("second call:", second)
print("with a seed:", seeded)
assert base_rollout.RolloutConfig().seed is None and first == second != seeded and first[0] != first[1], "it draws anew"
PYTHON
JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/show.py" 2> "$folder/log" || { cat "$folder/log"; exit 1; }
