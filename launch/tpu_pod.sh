#!/usr/bin/env bash
# A run on a TPU slice of several hosts: started from any machine with gcloud, it runs on all hosts of the slice.
#   TPU=my-slice ZONE=us-east5-a WORKDIR=/mnt/shared/runs/reddit bash launch/tpu_pod.sh [--config.name=value …]
#   TPU, ZONE      the slice (an existing one, see below), and its zone
#   WORKDIR        a directory that all hosts share: NFS, Filestore, or a bucket mounted on each (gcsfuse BUCKET DIRECTORY)
#   CONFIG=configs/reddit.py:summary,faithful   what runs
#   SOURCE=…       what to git clone on the hosts; empty copies this directory's commit there
#   PYTHON=python3 on the hosts, 3.11 or newer; where theirs is older, on each: pip install uv, uv python install 3.12
#   JAX_COORDINATOR_PORT=8476   on which the hosts find each other; the project's firewall must let it through inside the
#                  network (it does in Google Cloud's default network)
#
# A slice, on spare capacity, waits in a queue until there is one:
#   gcloud compute tpus queued-resources create my-slice --node-id=my-slice --zone=us-east5-a --spot \
#     --accelerator-type=v6e-64 --runtime-version=v2-alpha-tpuv6e
#   gcloud compute tpus queued-resources describe my-slice --zone=us-east5-a --format='value(state.state)'
# Taken away (the state is SUSPENDED) it does not come back by itself: delete it (queued-resources delete --force), create it
# again, and once it is ACTIVE run this command again: it resumes from the last checkpoint. JAX hears of the notice
# before and has all hosts save at the same step.
# Start it in tmux on a machine that stays up: with the connection the run ends (and goes on when started again).
set -euo pipefail
cd "$(dirname "$0")/.."
: "${TPU:?is the name of the slice}" "${ZONE:?is its zone}" "${WORKDIR:?is a directory that all its hosts share}"
config="${CONFIG:-configs/reddit.py:summary,faithful}"
on_all() { gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all --command="$1"; }

if [[ -n "${SOURCE:-}" ]]; then
  on_all "test -d meal_jax || git clone $(printf %q "$SOURCE") meal_jax"
else
  archive="$(mktemp -d)"
  trap 'rm -rf "$archive"' EXIT
  git archive --output="$archive/meal_jax.tar.gz" HEAD
  gcloud compute tpus tpu-vm scp "$archive/meal_jax.tar.gz" "$TPU:" --zone="$ZONE" --worker=all
  on_all "mkdir -p meal_jax && tar -xzf meal_jax.tar.gz -C meal_jax"
fi

# What each host runs. --distributed finds the others by the TPU's own metadata.
flags="$(printf '%q ' --config="$config" --workdir="$WORKDIR" --distributed "$@")"
on_all "set -e
cd meal_jax
export JAX_COORDINATOR_PORT=${JAX_COORDINATOR_PORT:-8476} PYTHON=${PYTHON:-python3}
source launch/venv.sh .venv '.[tpu]'
python -m meal_jax.doctor $flags
python -m meal_jax.main $flags"
