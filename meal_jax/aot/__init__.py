"""Ahead of time: what a run will take on accelerators that are not here. `python -m meal_jax.aot --help`."""
