"""The former name of the command `python -m meal_jax.hf.convert_gguf`; it goes in the next release."""

import runpy

if __name__ == "__main__":
    runpy.run_module("meal_jax.hf.convert_gguf", run_name="__main__")
