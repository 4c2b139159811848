#!/usr/bin/env bash
# ml_collections 1.1.0: a ConfigDict iterates in the order of the alphabet, where the dict that it was made of keeps its own.
#
# keys(), items(), values() and to_dict() do the same. So "the first entry", a default by position, columns of a table, or the
# order of keyword arguments differ from what the configuration file reads like. No order of insertion is kept: it cannot be had
# back. Code that needs an order holds a tuple of (name, value) pairs, or names the entry.
#
# Output seen (ml_collections 1.1.0, Python 3.11):
#   dict:       ['own', 'base', 'alone']
#   ConfigDict: ['alone', 'base', 'own']
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check ml_collections==1.1.0
cat > "$folder/show.py" <<'PYTHON'
import ml_collections

variants = {"own": 1, "base": 2, "alone": 3}
config = ml_collections.ConfigDict(variants)
print("dict:      ", list(variants))
print("ConfigDict:", list(config))
expected = ["alone", "base", "own"]
orders = [list(config), list(config.keys()), [name for name, _ in config.items()], list(config.to_dict())]
assert all(order == expected for order in orders), f"the behaviour has changed: {orders}"
PYTHON
"$folder/venv/bin/python" "$folder/show.py"
