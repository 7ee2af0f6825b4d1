#!/usr/bin/env bash
# Lint, then all tests but those marked long (pytest -m long). Tests that start workers, servers or a cluster run one at a
# time; the others run in two processes, a file at a time.
set -euo pipefail
cd "$(dirname "$0")/.."
bash ci/lint.sh
pytest="${VENV:-.venv}/bin/pytest"
"$pytest" -m "not integration" -n 2 --dist loadfile "$@"
exec "$pytest" -m "integration and not long" "$@"
