#!/usr/bin/env bash
# Lint, then all tests but those marked long (make test-long), two at a time and a file at a time. Tests that start workers,
# servers or a cluster come second: they wait for processes most of the time, and would slow the others down.
set -euo pipefail
cd "$(dirname "$0")/.."
bash ci/lint.sh
pytest="${VENV:-.venv}/bin/pytest"
"$pytest" -m "not integration" -n 2 --dist loadfile --durations=10 "$@"
exec "$pytest" -m "integration and not long" -n 2 --dist loadfile --durations=10 "$@"
