# Two commands set everything up on a fresh machine: `make demo` and `make test`.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CORPUS ?= $(or $(DRUMLINE_CORPUS),../shared/corpus)
DEMO := build/demo
SETUP := setup.cfg setup.py constraints.txt $(wildcard engine/drumline/*.[ch])
PEERS := build/peers/.done
PIP := PYTHONWARNINGS=ignore $(BIN)/python -m pip --disable-pip-version-check --quiet

.PHONY: help demo test torture lint docs model bench bench-quick bench-compare bench-guard soak clean

help:  ## Say what can be made.
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

demo: $(VENV)/.demo  ## Classify and rebuild a synthesised archive, or your own: make demo ARCHIVE=path
	@$(BIN)/python -m bench.demo $(DEMO) $(if $(ARCHIVE),--archive "$(ARCHIVE)")

test: lint  ## Check style and types, and run all tests.
	$(BIN)/python -m pytest

torture: $(VENV)/.dev  ## Kill, starve and confuse it for an hour or more: make torture [MINUTES=] [ATTACK=] [COUNT=] [SEED=]
	$(BIN)/python -m tests.torture --report build/torture.json $(if $(MINUTES),--minutes $(MINUTES)) \
		$(if $(ATTACK),--attack $(ATTACK)) $(if $(COUNT),--count $(COUNT)) $(if $(SEED),--seed $(SEED))

lint: $(VENV)/.dev  ## Check style and types.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.demo  ## Write docs/cli.md anew from the commands' own help.
	$(BIN)/python -m drumline.cli.reference docs/cli.md

model: $(VENV)/.dev  ## Train, convert, calibrate and measure the default bundle from scratch.
	$(BIN)/python -m drumline train model --corpus "$(CORPUS)" --out models/mfcc-cnn --version 0.3.0

bench: $(VENV)/.dev $(PEERS)  ## Measure speed and memory against peers, in about ten minutes: bench/REPORT.md
	PYTHONPATH=build/peers DRUMLINE_CORPUS="$(CORPUS)" $(BIN)/python -m bench.run

soak: $(VENV)/.dev  ## Classify a million files and rescan them fifty times; fit what should not grow.
	$(BIN)/python -m bench.soak

bench-quick: $(VENV)/.dev $(PEERS)  ## The same on a small scale, in about a minute.
	PYTHONPATH=build/peers DRUMLINE_CORPUS="$(CORPUS)" $(BIN)/python -m bench.run --quick --out build/bench

bench-compare: $(VENV)/.dev  ## Measure the single steps; say what became slower since the last time.
	$(BIN)/python -m bench.compare

bench-guard: $(VENV)/.dev  ## Fail when infer is not 8 times as fast as the plain way, on 500 files.
	DRUMLINE_CORPUS="$(CORPUS)" $(BIN)/python -m bench.guard

clean:  ## Remove what was built; the environment stays.
	rm -rf build dist engine/*.egg-info *.egg-info .mypy_cache .ruff_cache .hypothesis .benchmarks

$(VENV)/bin/python:
	@echo "Making $(VENV) …"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "drumline needs Python 3.11 or newer: make PYTHON=python3.11"; exit 1; }
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) install --upgrade pip setuptools wheel

$(VENV)/.demo: $(SETUP) | $(VENV)/bin/python
	@echo "Installing drumline …"
	@$(PIP) install --constraint constraints.txt --editable '.[cpu]'
	@touch $@

$(VENV)/.dev: $(SETUP) | $(VENV)/bin/python
	@echo "Installing drumline with everything that the tests and the training need …"
	@$(PIP) install --constraint constraints.txt --editable '.[cpu,train,dev]'
	@touch $@ $(VENV)/.demo

$(PEERS): bench/peers/requirements.txt | $(VENV)/.dev
	@echo "Installing what drumline is compared with …"
	@$(PIP) install --upgrade --no-deps --target build/peers --requirement $< || echo "not all peers can be had here; they are left out"
	@mkdir -p build/peers && touch $@
