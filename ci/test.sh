#!/usr/bin/env bash
# The whole suite: lint, then every test, those that start Ray and worker processes included.
set -euo pipefail
cd "$(dirname "$0")/.."
bash ci/lint.sh
exec "${VENV:-.venv}/bin/pytest" "$@"
