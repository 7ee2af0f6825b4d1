#!/usr/bin/env bash
# The suite: lint, then every test but those marked long (pytest -m long). Those that start workers, servers or a cluster
# of their own have the machine to themselves; the others share it, a file of tests at a time.
set -euo pipefail
cd "$(dirname "$0")/.."
bash ci/lint.sh
pytest="${VENV:-.venv}/bin/pytest"
"$pytest" -m "not integration" -n 2 --dist loadfile "$@"
exec "$pytest" -m "integration and not long" "$@"
