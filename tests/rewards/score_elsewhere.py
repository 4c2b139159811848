"""Started by published_models.py with a Python that has another transformers: scores rows as the published evaluation does.

Reads a JSON task from standard input, {preset: {"directory", "rows": [[prompt, response], …]}}, and prints {preset: [[token
ids, logits], …]}. A row is a call: no batch, no padding, no attention to neighbours. The texts of each preset are put together
as the evaluation documents it, not as meal_jax.rewards.formats does.
"""

import json
import sys

LONGEST = 1024


def texts_of(preset, tokenizer, prompt, response):
    """The tokenizer's positional arguments for one row."""
    if preset == "humor":
        return (response,)
    if preset == "summary":
        return (f"{response} {tokenizer.bos_token} {prompt}",)
    return (response, prompt) if preset == "faithful" else (prompt, response)


def main(task):
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.set_num_threads(1)
    out = {}
    for preset, part in task.items():
        tokenizer = AutoTokenizer.from_pretrained(part["directory"])
        model = AutoModelForSequenceClassification.from_pretrained(part["directory"]).float().eval()
        longest = min(tokenizer.model_max_length, LONGEST)
        out[preset] = []
        for prompt, response in part["rows"]:
            texts = texts_of(preset, tokenizer, prompt, response)
            inputs = tokenizer(*texts, truncation=True, max_length=longest, return_tensors="pt")
            if part["directory"].endswith(
                "humor"
            ):  # DistilBERT's own tokenizer gives no types, and the model takes none
                inputs.pop("token_type_ids", None)
            with torch.no_grad():
                logits = model(**inputs).logits[0]
            out[preset].append([inputs["input_ids"][0].tolist(), logits.tolist()])
    return out


if __name__ == "__main__":
    result = main(json.load(sys.stdin))
    print("\n" + json.dumps(result))
