#!/usr/bin/env bash
# The gain and the cost of early stopping; TPE against random search, both with early stopping; the noise of one
# configuration over three seeds. Needs the store of $MRISR_HOME, with a train, a validation and a test split.
# Results: docs/measurements/tuning.md. Usage: bench_tuning.sh [asha|whole|random|noise|table ...]; each part resumes.
set -euo pipefail
cd "$(dirname "$0")/.."
bin="${VENV:-.venv}/bin"
runs="${MRISR_HOME:-$HOME/mrisr}/runs"
config=tune
for part in "${@:-asha whole random noise table}"; do
  for name in $part; do
    case "$name" in
      asha) "$bin/mrisr" tune --config "$config" name=asha ;;
      whole) "$bin/mrisr" tune --config "$config" name=whole tuning.scheduler=none ;;
      random) "$bin/mrisr" tune --config "$config" name=random tuning.sampler=random ;;
      noise) "$bin/mrisr" tune --config "$runs/asha-search/winner.yaml" name=noise 'seed={choice: [0, 1, 2]}' \
        tuning.sampler=grid tuning.scheduler=none ;;
      table) "$bin/python" ci/bench_tuning.py "$runs"/{asha,whole,random,noise}-search ;;
      *) echo "no part is named $name; there are asha whole random noise table" >&2 && exit 2 ;;
    esac
  done
done
