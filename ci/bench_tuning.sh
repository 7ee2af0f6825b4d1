#!/usr/bin/env bash
# What early stopping saves and what it costs; TPE beside random search at equal steps; the noise of one configuration over
# three seeds. Needs a store with a train, a validation and a test split: the one of $MRISR_HOME. See docs/tuning.md.
set -euo pipefail
cd "$(dirname "$0")/.."
mrisr="${VENV:-.venv}/bin/mrisr"
runs="${MRISR_HOME:-$HOME/mrisr}/runs"
"$mrisr" tune --config jobs/configs/tune.yaml name=asha "$@"
"$mrisr" tune --config jobs/configs/tune.yaml name=whole tuning.scheduler=none "$@"
"$mrisr" tune --config jobs/configs/tune.yaml name=random tuning.scheduler=none tuning.sampler=random "$@"
"$mrisr" tune --config "$runs/asha-search/winner.yaml" name=noise 'seed={choice: [0, 1, 2]}' \
    tuning.sampler=grid tuning.scheduler=none
