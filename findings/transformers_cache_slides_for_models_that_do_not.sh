#!/usr/bin/env bash
# transformers 5.24.0: a sliding_window in the config.json of a Llama, Granite or OLMo 2 changes what generate answers, and no logit.
#
# Their attention does not slide and passes the entry over, in one pass. The cache reads it, and drops the keys beyond the window. So
# the tokens that generate draws are not the likeliest of the model's own logits for the same text.
#
# Output seen (Python 3.11, torch 2.13.0; random models, a window of 3, 12 tokens; largest change of a logit by the entry):
#   LlamaForCausalLM    in one pass 0, token by token 7.41
#   GraniteForCausalLM  in one pass 0, token by token 6.67
#   Olmo2ForCausalLM    in one pass 0, token by token 6.59
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.24.0 "numpy<2.5"
cat > "$folder/show.py" <<'PYTHON'
import torch
import transformers

sizes = {
    "vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "initializer_range": 0.3, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}
text = torch.arange(3, 15)[None]


def by_token(model):
    cache, logits = None, []
    for token in text[0]:
        out = model(token[None, None], past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        logits.append(out.logits)
    return torch.cat(logits, dim=1)


for kind in ("Llama", "Granite", "Olmo2"):
    config, model = getattr(transformers, f"{kind}Config"), getattr(transformers, f"{kind}ForCausalLM")
    torch.manual_seed(0)
    plain = model(config(**sizes)).eval()
    named = model(config(**sizes, sliding_window=3)).eval()
    named.load_state_dict(plain.state_dict())
    with torch.no_grad():
        right = plain(text).logits
        once = float((named(text).logits - right).abs().max())
        cached = float((by_token(named) - right).abs().max())
        assert float((by_token(plain) - right).abs().max()) < 1e-3
    print(f"{model.__name__:19} in one pass {once:.3g}, token by token {cached:.3g}")
    assert once < 1e-3 < 0.1 < cached, "the behaviour has changed"
PYTHON
"$folder/venv/bin/python" "$folder/show.py" 2> "$folder/log" || { cat "$folder/log"; exit 1; }
