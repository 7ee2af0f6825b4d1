#!/usr/bin/env bash
# Checks and measurements for a machine with a GPU and torch, but without Ray (its own python3, or PYTHON=...). First the
# tests of networks, objectives, steps, whole volumes, sharding (1, 2 and 3 ranks, over nccl with as many GPUs, else over
# gloo on the CPU), compiling and leaks. Then, even if tests fail, peak memory and the speed of steps against the plain
# loop.
# It needs pytest, hypothesis, numpy, scipy and scikit-image.
set -euo pipefail
cd "$(dirname "$0")/.."
: "${PYTHON:=python3}"
status=0
export PYTHONPATH="platform:storage${PYTHONPATH:+:$PYTHONPATH}"
# tests/conftest.py and pyproject.toml need packages that such a machine lacks.
"$PYTHON" -m pytest -c /dev/null --rootdir=. --noconftest --import-mode=importlib -p no:cacheprovider -q \
  tests/models tests/engine/test_{objectives,step,sharding_parity,compiling,leak,plane_by_plane}.py "$@" || status=$?
"$PYTHON" ci/bench_memory.py
"$PYTHON" ci/bench_step.py --parts layouts compile
exit "$status"
