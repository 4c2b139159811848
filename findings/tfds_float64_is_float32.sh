#!/usr/bin/env bash
# tensorflow-datasets 4.9.10: a feature declared float64 is written as float32 and read back as float64, so it has lost its
# digits and 1e300 is inf; a float given to an integer feature is cut, 3.7 to 3. Neither warns, though an integer that does not
# fit its feature raises.
#
# Examples are written as TensorFlow's Example protos, whose only list of floats is of 32 bits; integers have 64. The declared
# type is restored when a row is read, which hides it. Log-probabilities, rewards and time stamps as float64 (seconds since 1970 are
# off by up to a minute) are to be written as text or as bytes. Rewards that were meant to be rounded have to be rounded first.
#
# Output seen (array_record 0.8.3, NumPy 2.4.6, no TensorFlow, Python 3.11):
#   float64: 0.1 -> 0.10000000149011612, 1e+300 -> inf, 1764403200.0 -> 1764403200.0, 1764403231.0 -> 1764403200.0
#   int32: 3.7 -> 3; 1099511627776: OverflowError
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    tensorflow-datasets==4.9.10 array_record==0.8.3 numpy==2.4.6 importlib_resources
cat > "$folder/show.py" <<'PYTHON'
import math
import sys

import numpy as np
import tensorflow_datasets as tfds

tfds.disable_progress_bar()


def back(name, dtype, values):
    """`values` written as rows of one number of the type, and read again."""
    number = tfds.features.FeaturesDict({"x": tfds.features.Scalar(dtype=dtype)})
    members = {
        "VERSION": tfds.core.Version("1.0.0"),
        "_info": lambda self: tfds.core.DatasetInfo(builder=self, features=number, disable_shuffling=True),
        "_split_generators": lambda self, _: {"train": enumerate({"x": value} for value in values)},
        "_generate_examples": lambda self: None,
    }
    builder = type(name, (tfds.core.GeneratorBasedBuilder,), members)(data_dir=sys.argv[1], file_format="array_record")
    builder.download_and_prepare()
    rows = tfds.builder_from_directory(builder.data_dir).as_data_source(split="train")
    return [rows[i]["x"] for i in range(len(rows))]


numbers = [0.1, 1e300, 1764403200.0, 1764403231.0]
read = back("Floats", np.float64, numbers)
assert all(np.asarray(value).dtype == np.float64 for value in read)
print("float64:", ", ".join(f"{a!r} -> {float(b)!r}" for a, b in zip(numbers, read)))
(cut,) = back("Integers", np.int32, [3.7])
try:
    large = str(back("Large", np.int32, [2**40]))
except OverflowError:
    large = "OverflowError"
print(f"int32: 3.7 -> {cut}; {2**40}: {large}")
assert read[0] != 0.1 and math.isinf(read[1]) and read[2] == read[3], "float64 has changed"
assert cut == 3 and large == "OverflowError", "int32 has changed"
PYTHON
"$folder/venv/bin/python" "$folder/show.py" "$folder/data" 2> "$folder/log" | grep ' -> ' || { cat "$folder/log"; exit 1; }
