# `make help` lists the verbs.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# TensorFlow's build: EXTRA=gpu for the CUDA one.
EXTRA ?= cpu
# What is installed is in requirements/, version and hash. Empty: the newest of everything.
LOCKED ?= 1
ARGS ?=
TESTS ?= tests
SECONDS ?= 60
# Tests side by side: they wait more than they compute. 0: one after the other.
PARALLEL ?= 2
# Chaos: how many faults, and which (default: others every time).
FAULTS ?= 100
SEED ?=
# Versions of RabbitMQ, and suites of tests, of test-brokers (default: all).
VERSIONS ?=
SUITES ?=

# A thousand processes of the tests would each compile everything anew.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help run test test-fast test-oldest test-brokers test-compose chaos chaos-processes lint fuzz fuzz-live format \
  bench broker docs wheel lock clean

help: ## List the verbs
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

run: $(VENV)/run.stamp ## Train the default experiment on the embedded broker (ARGS="--slots 2 …")
	@$(BIN)/fluffle run experiments/mnist.toml $(ARGS)

test: $(VENV)/dev.stamp ## Run all tests (TESTS=tests/broker for some, PARALLEL=0 one by one)
	@scripts/provide-chromium
	@environment=$$(scripts/provide-rabbitmq) && env $$environment \
	  $(BIN)/pytest -n $(PARALLEL) --dist loadfile --no-loadscope-reorder $(TESTS) $(ARGS)

# No server, no TensorFlow, no network: while you work.
test-fast: $(VENV)/dev.stamp ## Run the tests that need nothing but Python (two minutes)
	@$(BIN)/pytest -n $(PARALLEL) --fast $(TESTS) $(ARGS)

test-brokers: $(VENV)/dev.stamp ## Try RabbitMQ's versions (hours; VERSIONS="own 4.0 4.3" SUITES="broker … chaos")
	@environment=$$(scripts/provide-rabbitmq) && env $$environment VERSIONS="$(VERSIONS)" SUITES="$(SUITES)" \
	  FAULTS=$(FAULTS) SEED=$(SEED) ARGS="$(ARGS)" scripts/test-brokers

test-oldest: $(VENV)/dev.stamp ## Install the oldest versions that pyproject.toml allows, and try them
	@scripts/test-oldest $(ARGS)

test-compose: $(VENV)/dev.stamp ## Build the image and try everything on compose.yaml (six minutes, a Docker engine)
	@$(BIN)/pytest -m compose tests/compose $(ARGS)

chaos: $(VENV)/dev.stamp ## Explore seeded schedules of faults (N=100000), or replay one (SEED=17)
	@$(BIN)/python -m tests.chaos.model.explore $(if $(SEED),--seed $(SEED),--count $(or $(N),10000)) $(ARGS)

chaos-processes: $(VENV)/dev.stamp ## Kill, stop and cut off real processes on RabbitMQ (FAULTS=100 SEED=7)
	@environment=$$(scripts/provide-rabbitmq) && env $$environment FLUFFLE_CHAOS_FAULTS=$(FAULTS) \
	  FLUFFLE_CHAOS_SEED=$(or $(SEED),$$RANDOM) $(BIN)/pytest -s tests/chaos/processes $(ARGS)

lint: $(VENV)/dev.stamp ## ruff, mypy --strict, one-way imports
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

fuzz: $(VENV)/dev.stamp ## Fuzz the decoder (SECONDS=600); what is new goes into tests/fuzz/corpus
	@scripts/fuzz $(BIN) $(SECONDS)

fuzz-live: $(VENV)/dev.stamp ## Send 10,000 hostile messages to a live run on RabbitMQ (minutes)
	@FLUFFLE_HOSTILE=10000 $(BIN)/pytest -s tests/fuzz/test_live.py

format: $(VENV)/dev.stamp ## Format the code
	@$(BIN)/ruff check --fix-only -q . && $(BIN)/ruff format .

bench: $(VENV)/dev.stamp broker ## Measure every claim in benchmarks/ (more than an hour)
	@for script in benchmarks/*/measure.py; do echo "== $$script"; $(BIN)/python $$script || exit 1; done

broker: ## Provide a RabbitMQ server for the tests if there is none
	@scripts/provide-rabbitmq

docs: $(VENV)/dev.stamp ## Build the documentation into site/ (ARGS=serve: show it while you write)
	@$(BIN)/mkdocs $(or $(ARGS),build --strict)

wheel: $(VENV)/run.stamp ## Build what sites install: a wheel, and its locked requirements beside it (dist/)
	@rm -rf dist && mkdir dist && cp requirements/cpu.txt requirements/gpu.txt dist/
	@$(BIN)/pip wheel --quiet --no-deps --no-build-isolation --no-index --wheel-dir dist .
	@cd dist && sha256sum * > SHA256SUMS && cat SHA256SUMS

lock: $(VENV)/dev.stamp ## Write requirements/ anew from pyproject.toml (ARGS=--upgrade: the newest)
	@scripts/lock $(ARGS)

clean: ## Remove what make has made, but not runs/
	rm -rf $(VENV) site dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis

comma := ,
# install EXTRAS FILES: this tree, editable, with what is locked, or with the newest of its extras.
PIP := $(BIN)/pip install --quiet --disable-pip-version-check
install = $(if $(LOCKED),$(PIP) --require-hashes $(2:%=-r requirements/%.txt) \
  && $(PIP) --no-deps --no-build-isolation --editable .,$(PIP) --upgrade --editable '.[$(1)]')

$(VENV)/run.stamp: pyproject.toml requirements/$(EXTRA).txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Fluffle needs Python 3.11 or newer: make PYTHON=python3.12 …" >&2; exit 2; }
	@echo "installing into $(VENV) …"
	@$(PYTHON) -m venv $(VENV)
	@$(call install,$(EXTRA)$(comma)report,$(EXTRA) build)
	@touch $@

$(VENV)/dev.stamp: $(VENV)/run.stamp requirements/dev.txt
	@$(call install,$(EXTRA)$(comma)jax$(comma)data$(comma)report$(comma)privacy$(comma)secure$(comma)pandas$(comma)watch$(comma)docs$(comma)dev,$(EXTRA) build dev)
	@touch $@
