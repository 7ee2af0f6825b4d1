#!/usr/bin/env bash
# All benchmarks; this installs the optional extra `bench`.
set -euo pipefail
cd "$(dirname "$0")/.."
: "${VENV:=.venv}"
"$VENV/bin/python" -m pip install --quiet --constraint ci/constraints.txt --editable '.[bench]'
"$VENV/bin/python" ci/bench_stream.py "$@"
"$VENV/bin/python" ci/profile_stream.py
"$VENV/bin/python" ci/bench_storage.py
"$VENV/bin/python" ci/bench_memory.py
"$VENV/bin/python" ci/bench_whole_volume.py
"$VENV/bin/python" ci/bench_step.py
