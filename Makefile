# The commands that the README names. Each sets up what it needs first.
VENV ?= .venv
PYTHON ?= python3
DATA ?=
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo demo-tune test test-long lint bench clean
demo: $(STAMP)
	$(BIN)/mrisr demo --home demo $(if $(DATA),--data "$(DATA)")

demo-tune: $(STAMP)
	$(BIN)/mrisr demo --tune --home demo $(if $(DATA),--data "$(DATA)")

test: $(STAMP)
	bash ci/test.sh

test-long: $(STAMP)
	$(BIN)/pytest -m long --durations=10

lint: $(STAMP)
	bash ci/lint.sh

bench: $(STAMP)
	bash ci/bench.sh

$(STAMP): pyproject.toml ci/constraints.txt ci/setup.sh
	PYTHON="$(PYTHON)" VENV="$(VENV)" bash ci/setup.sh
	touch $(STAMP)

clean:
	rm -rf $(VENV) demo bench build
