#!/usr/bin/env bash
# Makes the virtual environment and installs the project, with exactly the versions of ci/constraints.txt.
set -euo pipefail
cd "$(dirname "$0")/.."
: "${PYTHON:=python3}" "${VENV:=.venv}"

"$PYTHON" -c 'import sys; sys.exit(sys.version_info[:2] < (3, 11))' || {
  echo "Python 3.11 or newer is needed, but $PYTHON is $("$PYTHON" --version); use make PYTHON=/path/to/python3.11" >&2
  exit 1
}
[ -x "$VENV/bin/python" ] || "$PYTHON" -m venv "$VENV"
"$VENV/bin/python" -m pip install --quiet --upgrade "pip>=24"
# torch first and by its exact version. The index decides which build is installed: a CUDA build brings gigabytes of
# NVIDIA's libraries. For the CPU build, set PIP_INDEX_URL or PIP_EXTRA_INDEX_URL to an index that has it.
"$VENV/bin/python" -m pip install --quiet --constraint ci/constraints.txt "$(grep '^torch==' ci/constraints.txt)"
"$VENV/bin/python" -m pip install --quiet --constraint ci/constraints.txt --editable '.[test]'
