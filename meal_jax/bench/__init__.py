"""Step throughput, measured: `python -m meal_jax.bench`; how to read it is in docs/performance.md."""
