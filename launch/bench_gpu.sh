#!/usr/bin/env bash
# Step throughput on one GPU, in one command and under eight minutes: decoding over batch sizes against the measured
# bandwidth, the update's MFU at 7B with LoRA and rematerialisation, and the whole step beside transformers + PEFT.
#
#   bash launch/bench_gpu.sh [OUT]       OUT: runs/bench_gpu unless given; a folder with JSON and figures for each part
#   LIMIT=460                            seconds in all; a part that would not fit any more is left out, and said so
#   PYTHON=python  LARGE=Llama-2-7b  SMALL=SmolLM2-135M      interpreter, and names of meal_jax/hf/known.py
#   BATCHES=16,128  DECODE=16,128        sequences decoded at once; prompt and response tokens of that part
#   UPDATE=8,4,256,255  STEP=8,4,64,63   prompts, candidates, prompt tokens, response tokens of the other two; the preference
#                                        is read through one position more, so that 256 and 64 positions are computed
#   REPEATS=5  DTYPE=bfloat16  FLAGS=""  more flags for every part, such as --config.policy.lora_rank=32
#   PARTS="decode update step_small step_large"   those to run; on an H100 update took 50 s and step_small 180, most of it
#                                        compiling; step_large, the last, got 90 and was not done: LIMIT=900 leaves it time
#   FUSED=1                              0: attention and layers as on other devices (docs/performance.md, "One GPU")
#
# Weights are random ones of real shapes, so nothing is fetched. Needs jax with CUDA; the peer also needs torch with CUDA, and
# is left out without. On a machine without a GPU, to try the script: LARGE= SMALL= DTYPE=float32 FUSED=0 takes a toy's sizes.
set -uo pipefail
cd "$(dirname "$0")/.." || exit

out="${1:-runs/bench_gpu}"
python="${PYTHON:-python}"
large="${LARGE-Llama-2-7b}"
small="${SMALL-SmolLM2-135M}"
dtype="${DTYPE:-bfloat16}"
repeats="${REPEATS:-5}"
read -ra flags <<< "${FLAGS:-}"
rollout=() update=()
if [[ "${FUSED:-1}" == 1 ]]; then
  rollout=(--config.rollout.unstack_layers=True --config.rollout.attention=triton)
  update=(--config.policy.attention=cudnn) # no forward-mode derivative: for static targets alone
fi
export XLA_PYTHON_CLIENT_MEM_FRACTION="${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.93}"
IFS=, read -r decode_prompt decode_new <<< "${DECODE:-16,128}"
deadline=$((SECONDS + ${LIMIT:-460}))
failed=0

# part NAME ARGUMENT…: one measurement within what is left of the time.
part() {
  local name="$1" left=$((deadline - SECONDS)) status=0
  shift
  [[ " ${PARTS:-$name} " == *" $name "* ]] || return 0
  if ((left < 20)); then
    echo "== $name: left out, no time is left (LIMIT)"
    failed=1
    return
  fi
  echo "== $name (at most $left s)"
  timeout --kill-after=10 "$left" "$python" -m meal_jax.bench --config=configs/bench_smollm2.py --random --out="$out/$name" \
    --repeats="$repeats" --config.policy.dtype="$dtype" --config.policy.param_dtype="$dtype" "$@" "${flags[@]}" || status=$?
  if ((status)); then
    echo "== $name: ended with status $status (124: the time was up)"
    failed=1
  fi
}

# sizes B,N,S,T: the flags of a step's sizes, in the array `sized`.
sizes() {
  local batch candidates prompt new
  IFS=, read -r batch candidates prompt new <<< "$1"
  sized=("--config.batch_size=$batch" "--config.meal.candidates=$candidates" "--config.data.prompt_length=$prompt"
    "--config.sampling.max_new=$new")
}

"$python" -c 'import jax; print("== jax", jax.__version__, jax.devices())' || exit 1

part decode --sweep=batch --values="${BATCHES:-16,128}" --phases=rollout --config.policy.source="$large" \
  --config.meal.candidates=1 --config.data.prompt_length="$decode_prompt" --config.sampling.max_new="$decode_new" "${rollout[@]}"

sizes "${UPDATE:-8,4,256,255}"
part update --config.method=static --phases=update --loop=0 --config.policy.source="$large" "${update[@]}" "${sized[@]}"

if "$python" -c 'import sys, importlib.util as u; sys.exit(any(u.find_spec(n) is None for n in ("torch", "peft")))' &&
  "$python" -c 'import sys, jax, torch; sys.exit(jax.default_backend() == "gpu" and not torch.cuda.is_available())'; then
  sizes "${STEP:-8,4,64,63}"
  # Ours and the peer's process share the device: neither may take all of its memory at the start.
  export XLA_PYTHON_CLIENT_PREALLOCATE=false
  part step_small --vs=hf --loop=3 --config.method=static --config.policy.source="$small" "${rollout[@]}" "${update[@]}" \
    "${sized[@]}"
  part step_large --vs=hf --loop=0 --phases=step --config.method=static --config.policy.source="$large" \
    --config.policy.remat=full "${rollout[@]}" "${update[@]}" "${sized[@]}"
else
  echo "== step: left out, torch with this device and peft are not installed (pip install -e '.[bench]')"
fi

echo "== $((SECONDS)) s; results under $out:"
find "$out" -name '*.json' -o -name '*.png' | sort
exit "$failed"
