"""Writes hh_rlhf_lengths.txt: the token counts of hh-rlhf's preferred answers, for `python -m meal_jax.bench --lengths`.

    python benchmarks/hh_rlhf_lengths.py TOKENIZER harmless-base/test.jsonl.gz helpful-base/test.jsonl.gz > lengths.txt

Counts of the last assistant turn of each `chosen` text, plus one for its end, sorted; every tenth is kept.
"""

import gzip
import json
import sys

from transformers import AutoTokenizer

_, tokenizer, *files = sys.argv
answers = []
for path in files:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        answers += [json.loads(line)["chosen"].rpartition("\n\nAssistant:")[2].strip() for line in lines]
counts = sorted(len(tokens) + 1 for tokens in AutoTokenizer.from_pretrained(tokenizer)(answers)["input_ids"])
print(
    "# Tokens of the preferred answers of hh-rlhf's test files harmless-base and helpful-base (Anthropic, MIT licence;"
)
print("# https://github.com/anthropics/hh-rlhf) by GPT-2's tokenizer, with the end token.")
print(f"# {len(counts)} counts, sorted, every tenth; written by benchmarks/hh_rlhf_lengths.py.")
print(*counts[5::10], sep="\n")
