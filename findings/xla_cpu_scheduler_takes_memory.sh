#!/usr/bin/env bash
# jax 0.10.2 on a CPU: by default XLA orders a program's operations for concurrency, and its workspace can be many times what one
# order after the other needs. The flag that says so can be given to jax.jit or compile() as a compiler option, is accepted there, and
# does nothing; in XLA_FLAGS it works.
#
# Independent parts that could run one by one, each in the memory of the last, are all begun at once: 16 of them hold 33.6 MB in
# place of 2.1. So a program that fits a GPU or TPU, which order for memory, may not fit a larger host, and a peak measured on
# a CPU says little about a device. An update of SmolLM2-135M (two gradients of 4 × 4 answers) went from 5.92 to 2.11 GB with the flag;
# it took 1.15 to 1.2 times as long on two cores. The compiler option's name is checked and so is its type.
#
# Output seen (jaxlib 0.10.2, CPU, Python 3.11), megabytes of workspace:
#   by default: 33.6; with the compiler option: 33.6; with XLA_FLAGS: 2.1
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2 numpy
cat > "$folder/show.py" <<'PYTHON'
import os
import subprocess
import sys

NAME = "xla_cpu_enable_concurrency_optimized_scheduler"
if len(sys.argv) == 1:
    def workspace(how, **environment):
        command = [sys.executable, __file__, how]
        return float(subprocess.run(command, env={**os.environ, **environment}, capture_output=True, check=True).stdout)

    plain, option, flag = workspace("plain"), workspace("option"), workspace("plain", XLA_FLAGS=f"--{NAME}=false")
    print(f"by default: {plain:.1f}; with the compiler option: {option:.1f}; with XLA_FLAGS: {flag:.1f}")
    assert plain == option > 10 * flag, "the behaviour has changed"
else:
    import jax
    import jax.numpy as jnp

    def parts(x):
        total = 0.0
        for i in range(16):
            y = jnp.sin(x + i) @ x
            total += jnp.sum(jnp.cos(y) @ y)
        return total

    options = {NAME: False} if sys.argv[1] == "option" else None
    compiled = jax.jit(parts).lower(jnp.ones((512, 512))).compile(compiler_options=options)
    print(compiled.memory_analysis().temp_size_in_bytes / 1e6)
PYTHON
JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/show.py"
