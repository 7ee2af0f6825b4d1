#!/usr/bin/env bash
# The whole suite: lint, then every test. Those of tests/integration start clusters, workers and servers of their own and
# have the machine to themselves; the others share it, a file of tests at a time.
set -euo pipefail
cd "$(dirname "$0")/.."
bash ci/lint.sh
pytest="${VENV:-.venv}/bin/pytest"
"$pytest" --ignore tests/integration -n 2 --dist loadfile "$@"
exec "$pytest" tests/integration "$@"
