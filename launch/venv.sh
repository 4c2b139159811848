# shellcheck shell=bash
# Sourced: `source launch/venv.sh DIRECTORY REQUIREMENT…` makes a virtual environment if there is none, installs into it
# and activates it. PYTHON names the interpreter.
_python="${PYTHON:-python3}"
"$_python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
  echo "Python 3.11 or newer is needed; $_python is $("$_python" --version). Set PYTHON=/path/to/python3.11." >&2
  exit 1
}
[ -x "$1/bin/python" ] || "$_python" -m venv "$1"
# shellcheck disable=SC1091
source "$1/bin/activate"
pip install --quiet --disable-pip-version-check --editable "${@:2}"
