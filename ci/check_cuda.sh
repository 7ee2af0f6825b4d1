#!/usr/bin/env bash
# What a machine with a GPU and torch, but without Ray, can check and measure (its own python3, or PYTHON=...): the tests
# of networks, objectives, steps, sharding (1, 2 and 3 ranks: over nccl where there are as many GPUs, else over gloo on the
# CPU), compiling and leaks; then, whatever those said, peak memory and the speed of steps against the plain loop. It needs pytest, numpy, scipy and scikit-image.
set -euo pipefail
cd "$(dirname "$0")/.."
: "${PYTHON:=python3}"
status=0
export PYTHONPATH="platform:storage${PYTHONPATH:+:$PYTHONPATH}"
# tests/conftest.py and pyproject.toml ask for more than such a machine has.
"$PYTHON" -m pytest -c /dev/null --rootdir=. --noconftest --import-mode=importlib -p no:cacheprovider -q \
  tests/models tests/engine/test_{objectives,step,sharding_parity,compiling,leak}.py "$@" || status=$?
"$PYTHON" ci/bench_memory.py
"$PYTHON" ci/bench_step.py --parts layouts compile
exit "$status"
