"""Compiles a run ahead of time for other accelerators: memory, time and collectives. `python -m meal_jax.aot --help`."""
