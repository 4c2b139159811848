#!/usr/bin/env bash
# trl 1.16.0, GRPOTrainer: beside a second reward function, a completion whose first reward is None counts as one of reward 0.
#
# A reward function may return None where it does not apply; the documentation of
# reward_funcs says that it is then excluded for that sample. Where every function returns None the completion has advantage 0.
# Where another function has a value, the weighted sum leaves the None out of the sum, which is to take it for 0, and the group's
# mean takes in this sum. So with rewards far from 0 the one completion that nobody judged is pushed away from hardest (or
# towards, with rewards below 0) and the worst one that was judged is learned. multi_objective_aggregation="normalize_then_sum"
# takes each function's mean over the values it gave, and the same completion has advantage 0 there.
#
# Output seen (Python 3.11, transformers 5.24.0, torch 2.13.0, datasets 5.2.0):
#   rewards 6, 7, 8, None and 0, 0, 0, 0
#   sum_then_normalize (the default): advantages 0.21, 0.49, 0.77, -1.46
#   normalize_then_sum: advantages -1.22, 0.00, 1.22, 0.00
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    trl==1.16.0 transformers==5.24.0 torch==2.13.0 datasets==5.2.0 accelerate==1.15.0 "numpy<2.5" rich
cat > "$folder/show.py" <<'PYTHON'
import glob
import pandas
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import GRPOConfig, GRPOTrainer

vocabulary = Tokenizer(models.WordLevel({f"w{i}": i for i in range(32)}, unk_token="w2"))
vocabulary.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=vocabulary, pad_token="w0", eos_token="w1")
sizes = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
policy = LlamaConfig(vocab_size=32, pad_token_id=0, eos_token_id=1, **sizes)


def judge(completions, **kwargs):
    return [6.0, 7.0, 8.0, None]


def length(completions, **kwargs):
    return [0.0, 0.0, 0.0, 0.0]


print("rewards 6, 7, 8, None and 0, 0, 0, 0")
seen = {}
for aggregation in ("sum_then_normalize", "normalize_then_sum"):
    arguments = GRPOConfig(
        aggregation, max_steps=1, per_device_train_batch_size=4, num_generations=4, max_completion_length=4, bf16=False,
        multi_objective_aggregation=aggregation, use_cpu=True, report_to="none", log_completions=True, logging_steps=1,
    )
    rows = Dataset.from_dict({"prompt": ["w3 w4"] * 4})
    model = LlamaForCausalLM(policy)
    GRPOTrainer(model, [judge, length], args=arguments, train_dataset=rows, processing_class=tokenizer).train()
    (table,) = glob.glob(f"{aggregation}/completions/*.parquet")
    seen[aggregation] = [round(a, 2) for a in pandas.read_parquet(table)["advantage"]]
print("sum_then_normalize (the default): advantages", ", ".join(f"{a:.2f}" for a in seen["sum_then_normalize"]))
print("normalize_then_sum: advantages", ", ".join(f"{a:.2f}" for a in seen["normalize_then_sum"]))
assert seen["sum_then_normalize"] == [0.21, 0.49, 0.77, -1.46], "what nobody judged counts otherwise now"
assert seen["normalize_then_sum"] == [-1.22, 0.0, 1.22, 0.0], "the other aggregation differs now"
PYTHON
cd "$folder"
venv/bin/python show.py > out 2> log || { cat out log; exit 1; }
grep -E "^(rewards|sum_then|normalize_then)" out
