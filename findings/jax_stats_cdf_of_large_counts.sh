#!/usr/bin/env bash
# jax 0.10.2: jax.scipy.stats gives probabilities below 0 and above 1 for large counts, in float32, its default: poisson.cdf of a
# million at a mean of a million is -0.37, poisson.pmf of ten million is 8.9 million. The true values are 0.50 and 0.00013.
#
# Counts of tokens and pooled comparisons are that large. Probabilities go wrong before they look so: a beta distribution that is
# symmetric about ½ has 0.58 below ½ at 100,000 counts a side, and a binomial probability is 8 % off. log Γ of such numbers has no digits
# left after the point in float32, and differences of it are what the functions exponentiate; SciPy gives the right numbers for float32
# inputs too. Use SciPy on the host; under jax_enable_x64 a million is right, and beta.cdf of ten million is 0.490. Nothing is raised,
# and under jit nothing shows it but the numbers.
#
# Output seen (Python 3.11, SciPy 1.17.1, on a CPU), jax / SciPy with the same float32 inputs:
#   n = 1e+03: beta.cdf(½, n, n) 0.5 / 0.5, binom.pmf(n/2, n, ½) 0.025 / 0.025, poisson.pmf(n, n) 0.013 / 0.013, poisson.cdf(n, n) 0.51 / 0.51
#   n = 1e+05: beta.cdf(½, n, n) 0.58 / 0.5, binom.pmf(n/2, n, ½) 0.0027 / 0.0025, poisson.pmf(n, n) 0.0012 / 0.0013, poisson.cdf(n, n) 0.54 / 0.5
#   n = 1e+06: beta.cdf(½, n, n) 0.45 / 0.5, binom.pmf(n/2, n, ½) 0.00076 / 0.0008, poisson.pmf(n, n) 0.00091 / 0.0004, poisson.cdf(n, n) -0.37 / 0.5
#   n = 1e+07: beta.cdf(½, n, n) -1.1e+11 / 0.5, binom.pmf(n/2, n, ½) 1.3e-14 / 0.00025, poisson.pmf(n, n) 8.9e+06 / 0.00013, poisson.cdf(n, n) -3.1e+10 / 0.5
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6 scipy==1.17.1
cat > "$folder/show.py" <<'PYTHON'
import jax
import numpy as np
from scipy import stats

half, seen = np.float32(0.5), {}
for count in (1e3, 1e5, 1e6, 1e7):
    n = np.float32(count)
    for name, call in {
        "beta.cdf(½, n, n)": lambda library, n=n: library.beta.cdf(half, n, n),
        "binom.pmf(n/2, n, ½)": lambda library, n=n: library.binom.pmf(n / 2, n, half),
        "poisson.pmf(n, n)": lambda library, n=n: library.poisson.pmf(n, n),
        "poisson.cdf(n, n)": lambda library, n=n: library.poisson.cdf(n, n),
    }.items():
        seen[count, name] = float(call(jax.scipy.stats)), float(call(stats))
    told = (f"{name} {mine:.2g} / {true:.2g}" for (at, name), (mine, true) in seen.items() if at == count)
    print(f"n = {count:.0e}: {', '.join(told)}")
assert all(abs(mine - true) < 0.01 for (at, _), (mine, true) in seen.items() if at == 1e3)
assert abs(seen[1e5, "beta.cdf(½, n, n)"][0] - 0.5) > 0.05, "float32 does better now"
assert seen[1e6, "poisson.cdf(n, n)"][0] < -0.1 and seen[1e7, "poisson.pmf(n, n)"][0] > 1e3, "float32 does better now"
PYTHON
JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/show.py"
