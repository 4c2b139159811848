"""The command that turns a GGUF file into a Hugging Face directory.

python -m meal_jax.hf.convert_gguf --source=FILE.gguf --out=DIR [--dtype=bfloat16]
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from meal_jax import command


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m meal_jax.hf.convert_gguf", description=__doc__.splitlines()[0])
    parser.add_argument("--source", required=True, help="GGUF file")
    parser.add_argument("--out", required=True, help="directory to write")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the stored weights")
    command.main_with(write, parser, arguments)


def write(options: argparse.Namespace) -> None:
    convert(options.source, options.out, options.dtype, progress=True)
    print(f"Wrote {options.out}")


def convert(source: str | Path, out: str | Path, dtype: str = "float32", progress: bool = False) -> None:
    """Writes the Hugging Face directory `out`; the weights come last, so a directory with weights is complete.

    Args:
      source: GGUF file.
      out: directory, created if missing.
      dtype: of the stored weights, "float32" or "bfloat16".
      progress: shows a progress bar on the terminal.

    Raises:
      ModuleNotFoundError: the gguf package is not installed.
      FileNotFoundError, ValueError: no such file; not a GGUF file; or it has features that are not implemented, named.
    """
    import rich.progress

    from meal_jax.hf import gguf, gguf_tokenizer, pretrained  # these import jax, which --help does not need
    from meal_jax.hf.storage import Tensor

    reader, meta, config = gguf.open_file(Path(source), dtype)
    tokenizer, settings = gguf_tokenizer.read_tokenizer(meta)
    tensors = gguf.hugging_face_tensors(reader, config)
    Path(out).mkdir(parents=True, exist_ok=True)
    ids = gguf.write_tokenizer(Path(out), meta, tokenizer, settings)
    with rich.progress.Progress(disable=not progress) as bar:
        task = bar.add_task("Expanding weights", total=len(tensors))

        def counted(read):
            return lambda index: (bar.advance(task), read(index))[1]

        tensors = {name: Tensor(t.shape, t.dtype, counted(t.read)) for name, t in tensors.items()}
        pretrained.write(Path(out), config, tensors, ids)


if __name__ == "__main__":
    main()
