# `make` prints the targets. Everything runs from .venv, which `make setup` builds.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# cpu or gpu: the build of vLLM. By default gpu where nvidia-smi sees one.
EXTRA ?= $(shell nvidia-smi --list-gpus 2>/dev/null | grep -q GPU && echo gpu || echo cpu)
# That run the integration tests; 0: pytest's own alone, for a debugger. One on a GPU, whose memory engines would share.
PROCESSES ?= $(if $(filter gpu,$(EXTRA)),1,2)
CONFIG ?= configs/shapes_cpu.yaml
ARGS ?=

VENV := .venv
PYTHON_BIN := $(VENV)/bin/python
STAMP := $(VENV)/.setup-$(EXTRA)

.PHONY: help setup triton train test test-unit test-integration test-hosts test-all check docs docs-serve format boards bench clean

help:  ## print this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-18s %s\n", $$1, $$2}'
	@echo
	@echo '  make train ARGS="--set run.steps=10"     more options for the command behind a target'
	@echo '  make setup EXTRA=gpu                     cpu or gpu; by default what this machine has'

$(STAMP): pyproject.toml constraints.txt scripts/setup.sh
	@scripts/setup.sh $(EXTRA)
	@rm -f $(VENV)/.setup-*
	@touch $@

setup: $(STAMP)  ## build .venv with everything in it (at once when nothing changed)

train: setup  ## train; without more, a tiny Janus on the shapes world, on CPU, in minutes
	$(PYTHON_BIN) -m cluster.launch --config $(CONFIG) $(ARGS)

test: test-unit test-integration  ## run all tests

test-unit: setup  ## run the tests that need no engine, no Ray, no Redis (seconds)
	$(PYTHON_BIN) -m pytest tests/unit -n auto --dist worksteal -m 'not proof' $(ARGS)

test-integration: setup  ## run the tests with the real vLLM, Ray, DeepSpeed and Redis (minutes)
	$(PYTHON_BIN) -m pytest tests/hosts tests/integration $(wildcard tests/gpu) -m 'not proof' \
	    -n $(PROCESSES) --dist loadfile --no-loadscope-reorder $(ARGS)

test-hosts: setup  ## run all stories of several hosts, in network namespaces (Linux, root; a quarter of an hour)
	$(PYTHON_BIN) -m pytest tests/hosts $(ARGS)

test-all: export BICOT_FUZZ_EXAMPLES ?= 10000
test-all: test-unit test-hosts triton  ## run everything, the long proofs too
	$(PYTHON_BIN) -m pytest tests/unit -m proof $(ARGS)
	$(PYTHON_BIN) -m pytest tests/integration $(wildcard tests/gpu) $(ARGS)

check: setup  ## lint, format, types, rules of rooms and imports, shipped configs, documentation
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(PYTHON_BIN) -m pytest -q tests/unit/test_imports.py tests/unit/configs/test_shipped_configs.py tests/unit/docs

triton: setup  ## fetch Triton beside the environment, for a proof of the newer model runner on a CPU
	$(VENV)/bin/python -m pip install --quiet --no-deps --target build/triton triton==3.9.0

docs: setup  ## build the documentation into build/site; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(PYTHON_BIN) -m mkdocs build --strict
	@echo 'open build/site/index.html'

docs-serve: setup  ## show the documentation on http://127.0.0.1:8000 and follow changes
	NO_MKDOCS_2_WARNING=1 $(PYTHON_BIN) -m mkdocs serve

format: setup  ## let ruff mend what it can
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

boards: setup  ## write the Grafana board and the Prometheus alerts from their Python
	$(PYTHON_BIN) -m cluster.boards

bench: setup  ## measure the stages of the pipeline on this machine
	$(PYTHON_BIN) -m cluster.bench $(ARGS)

clean:  ## remove .venv and caches; never runs/ nor cached models
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache
	find . -name __pycache__ -type d -not -path './runs/*' -prune -exec rm -rf {} +
