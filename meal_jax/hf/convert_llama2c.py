"""The command `python -m meal_jax.hf.convert_llama2c`: a llama2.c checkpoint as a Hugging Face directory; see `llama2c`.

python -m meal_jax.hf.convert_llama2c --model=stories260K.bin --tokenizer=tok512.bin --out=DIRECTORY --dtype=float16
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from meal_jax import command

DTYPES = ("float16", "float32")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m meal_jax.hf.convert_llama2c", description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, metavar="BIN", help="checkpoint, format v0")
    parser.add_argument("--tokenizer", type=Path, required=True, metavar="BIN", help="its tokenizer")
    parser.add_argument("--out", type=Path, required=True, metavar="DIRECTORY", help="to write")
    parser.add_argument("--dtype", default="float32", choices=DTYPES, help="that weights are stored in")
    command.main_with(write, parser, arguments)


def write(options: argparse.Namespace) -> None:
    convert(options.model, options.tokenizer, options.out, options.dtype)
    print(f"Wrote {options.out}, {sum(path.stat().st_size for path in options.out.iterdir()):,} bytes")


def convert(model: Path, tokenizer: Path, out: Path, dtype: str = "float32") -> None:
    """Writes config.json, model.safetensors, tokenizer.json and tokenizer_config.json to `out`.

    Args:
      model, tokenizer: llama2.c's files.
      out: directory, made if it is not there.
      dtype: that weights are stored in, one of DTYPES.

    Raises:
      ValueError: either file is damaged, or they have different vocabularies.
    """
    import numpy as np

    from meal_jax.hf import llama2c  # these bring jax, which --help does not wait for
    from meal_jax.hf.storage import Tensor, write_files

    settings, tensors = llama2c.read_model(model)
    pieces, names = llama2c.read_tokenizer(tokenizer)
    if pieces.get_vocab_size() != settings["vocab_size"]:
        raise ValueError(
            f"{tokenizer} has {pieces.get_vocab_size()} tokens and {model} a vocabulary of {settings['vocab_size']}: "
            "they do not belong together."
        )
    out.mkdir(parents=True, exist_ok=True)
    settings |= {"torch_dtype": dtype, "bos_token_id": 1, "eos_token_id": 1}
    lazily = {name: Tensor(array.shape, "F32", array.__getitem__) for name, array in tensors.items()}
    pieces.save(str(out / "tokenizer.json"), pretty=False)
    names |= {"model_max_length": settings["max_position_embeddings"]}
    (out / "tokenizer_config.json").write_text(json.dumps(names, indent=2) + "\n", encoding="utf-8")
    write_files(out, settings, lazily, dict.fromkeys(tensors, np.dtype(dtype)))


if __name__ == "__main__":
    main()
