"""The former name of the command `python -m meal_jax.parity`; it goes in the next release."""

import runpy

if __name__ == "__main__":
    runpy.run_module("meal_jax.parity.__main__", run_name="__main__")
