"""Step throughput, measured: `python -m meal_jax.bench`; docs/performance.md says how to read it."""
