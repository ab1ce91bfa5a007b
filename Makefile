# celebdit: `make help` lists what there is.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV := $(BIN)/uv
INSTALL := $(UV) pip install --quiet --compile-bytecode --python $(BIN)/python --require-hashes --build-constraints requirements/build.txt
export OMP_NUM_THREADS ?= 1

.PHONY: help demo test lint types contracts unit fault format bench-tools lock ui down images test-images clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

demo: $(VENV)/.run  ## the whole pipeline on drawn faces, in a few minutes
	$(BIN)/celebdit demo

ui: $(VENV)/.run  ## MLflow with everything that ran here, until `make down`
	$(BIN)/celebdit ui

down: $(VENV)/.run  ## stop what `make ui` started
	$(BIN)/celebdit services down

test: lint types contracts unit  ## everything that must hold before a commit; needs no GPU

lint: $(VENV)/.dev  ## style and obvious mistakes
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(VENV)/.dev  ## static types
	$(BIN)/mypy

contracts: $(VENV)/.dev  ## which room may import which
	$(BIN)/lint-imports

unit: $(VENV)/.dev $(VENV)/.chromium  ## all tests but the slow fault tests
	$(BIN)/pytest -n 4 --dist loadfile --no-loadscope-reorder -m "not (fault and slow) and not images"

$(VENV)/.chromium: | $(VENV)/.dev
	@command -v chromium >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && \
	  echo "installing chromium for the browser tests" && { apt-get install -y -qq --no-install-recommends chromium >/dev/null 2>&1 || \
	  { apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium >/dev/null; }; }; } || \
	  echo "no chromium: the browser tests will be skipped and say so"
	@! command -v chromium >/dev/null || touch $@

fault: $(VENV)/.dev  ## the slow tests that kill processes and break servers
	$(BIN)/pytest -m fault

$(VENV)/.bench: requirements/bench.txt pyproject.toml | $(VENV)/.dev
	$(INSTALL) -r requirements/bench.txt
	@touch $@

bench-tools: $(VENV)/.bench  ## what benchmarks/ compares with (diffusers)

format: $(VENV)/.dev  ## rewrite the code in the house style
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

lock: $(VENV)/bin/uv  ## pin all dependencies again, with hashes
	$(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --custom-compile-command "make lock" requirements/bootstrap.in -o requirements/bootstrap.txt
	$(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --custom-compile-command "make lock" requirements/build.in -o requirements/build.txt
	$(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --custom-compile-command "make lock" pyproject.toml --extra dev --extra kaggle --extra server requirements/bootstrap.txt requirements/build.txt -o requirements/dev.txt
	$(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --custom-compile-command "make lock" -c requirements/dev.txt pyproject.toml requirements/build.txt -o requirements/run.txt
	$(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --custom-compile-command "make lock" -c requirements/dev.txt pyproject.toml --extra bench requirements/build.txt -o requirements/bench.txt
	$(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --custom-compile-command "make lock" -c requirements/dev.txt pyproject.toml --extra kaggle --extra server --no-emit-package triton --no-emit-package nvidia-cusolver requirements/build.txt -o requirements/cpu.txt

images: $(VENV)/.run  ## build both container images: BASE_IMAGE=..., and REGISTRY=... PUSH=1 for a cluster
	@test -n "$(BASE_IMAGE)" || { echo "say which image to build on: make images BASE_IMAGE=your.registry/python:3.11 (docs/kubernetes.md)" >&2; exit 2; }
	$(BIN)/python -m pipeline.images --base-image "$(BASE_IMAGE)" $(if $(REGISTRY),--registry "$(REGISTRY)") $(if $(PUSH),--push) $(IMAGE_FLAGS)

test-images: $(VENV)/.dev  ## build both images and run the smoke pipeline in them; needs docker, podman or buildah
	$(BIN)/pytest -m images -rs

clean:  ## remove caches and the virtual environment, never results
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache *.egg-info

$(VENV)/bin/uv: requirements/bootstrap.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=python3.12 ..." >&2; exit 2; }
	@$(PYTHON) -m venv $(VENV) || { echo "Python's venv module is needed (Debian and Ubuntu: apt-get install python3-venv)" >&2; exit 2; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/bootstrap.txt
	@touch $@

$(VENV)/.run: requirements/run.txt pyproject.toml | $(VENV)/bin/uv
	$(INSTALL) -r requirements/run.txt
	$(UV) pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/.dev: requirements/dev.txt pyproject.toml | $(VENV)/bin/uv
	$(INSTALL) -r requirements/dev.txt
	$(UV) pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .
	@touch $@ $(VENV)/.run
