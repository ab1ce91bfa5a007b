# celebdit: `make help` lists the targets.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV := $(BIN)/uv
# Installs into $(VENV) and nowhere else, and makes it again if a killed process left it half-made.
INSTALL := @$(PYTHON) requirements/install.py --venv $(VENV)
# What calls for an installation although no requirement is newer: an environment that lost its configuration, or was left half-made.
BROKEN := $(if $(wildcard $(VENV)/pyvenv.cfg),$(if $(wildcard $(VENV)/.incomplete),broken),broken)
export OMP_NUM_THREADS ?= 1
# Else each of the many processes of a test run, or of a pipeline, compiles the modules of the project again: 0.4 s.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo slim test lint types contracts unit shapes fault docs schema golden format old-mlflow bench-tools extras signing lock ui down images test-images clean broken

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

demo: $(VENV)/.run  ## run the whole pipeline on generated faces, in a few minutes
	$(BIN)/celebdit demo

ui: $(VENV)/.run  ## start MLflow with all local runs, until `make down`
	$(BIN)/celebdit ui

down: $(VENV)/.run  ## stop the servers of `make ui`
	$(BIN)/celebdit services down

test: lint types contracts unit  ## run all checks that must pass before a commit; needs no GPU

lint: $(VENV)/.dev  ## check style and common mistakes
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(VENV)/.dev  ## check static types
	$(BIN)/mypy

contracts: $(VENV)/.dev  ## check the import contracts
	$(BIN)/lint-imports

unit: $(VENV)/.dev $(VENV)/.debian  ## run all tests except the slow ones of `make fault` and the image builds
	$(BIN)/pytest -n 4 --dist loadfile --no-loadscope-reorder --durations=15 -m "not (fault and slow) and not images and not documents"

DEBIAN_PACKAGES := chromium libjpeg-turbo-progs imagemagick libimage-exiftool-perl
HAS_DEBIAN_PACKAGES := command -v chromium && command -v cjpeg && command -v jpegtran && command -v convert && command -v exiftool

$(VENV)/.debian: | $(VENV)/.dev
	@{ $(HAS_DEBIAN_PACKAGES); } >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && \
	  echo "installing $(DEBIAN_PACKAGES) for the tests" && { apt-get install -y -qq --no-install-recommends $(DEBIAN_PACKAGES) >/dev/null 2>&1 || \
	  { apt-get update -qq && apt-get install -y -qq --no-install-recommends $(DEBIAN_PACKAGES) >/dev/null; }; }; } || \
	  echo "not all of $(DEBIAN_PACKAGES) are installed: the tests that need the others will be skipped and say so"
	@! { $(HAS_DEBIAN_PACKAGES); } >/dev/null || touch $@

# torch.compile cannot trace the checks; the other tests left out take long and call nothing that the rest does not.
shapes: $(VENV)/.dev  ## run the tests of model/ with shapes and types checked at every call
	$(BIN)/pytest -n 2 --jaxtyping-packages=model,shape_checks.check_types -k "not compile and not memorised and not over_all_timesteps" tests/unit/model

fault: $(VENV)/.dev $(VENV)/.bench old-mlflow shapes  ## run the slow tests: kills, broken servers, the examples of the documents; `make shapes` first
	$(BIN)/pytest -n 3 --dist loadfile --no-loadscope-reorder -m "(fault and slow) or documents"

# Servers for the tests, each in an environment of its own: the oldest MLflow that is supported, and one that is too old.
old-mlflow: $(VENV)/.oldest-mlflow $(VENV)/.too-old-mlflow  ## install the old MLflow servers that `make fault` tests against

$(VENV)/.%-mlflow: requirements/%-mlflow.txt | $(VENV)/.dev
	$(UV) venv --quiet --clear --python $(BIN)/python $(VENV)/$*-mlflow
	$(UV) pip install --quiet --require-hashes --no-build --python $(VENV)/$*-mlflow/bin/python -r $<
	@touch $@

$(VENV)/.bench: requirements/bench.txt pyproject.toml $(BROKEN) | $(VENV)/.dev
	$(INSTALL) bench
	@touch $@

bench-tools: $(VENV)/.bench  ## install what benchmarks/ compares with (diffusers, denoising-diffusion-pytorch)

gpu-check: $(VENV)/.dev  ## measure one GPU in at most 8 minutes, without a network: GPU_FLAGS="--toy" for a try on the CPU
	$(BIN)/python -m benchmarks.gpu_check --out gpu-check.json $(GPU_FLAGS)

docs: $(VENV)/.dev  ## generate docs/configuration.md and docs/environment.md
	$(BIN)/python -m pipeline.reference

schema: $(VENV)/.dev  ## write the empty database of the installed MLflow, after an upgrade of MLflow
	$(BIN)/python -m pipeline.mlflow_schema

golden: $(VENV)/.dev  ## write the golden files of the compiled pipeline; read their diff before you commit
	CELEBDIT_WRITE_GOLDEN=1 $(BIN)/pytest -q tests/unit/pipeline/test_compile.py -k golden

format: $(VENV)/.dev  ## format the code
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

extras: $(VENV)/.run  ## install what kaggle://, hf://, HEIC and JPEG XL, serving and learning samplers of sweeps need, pinned with hashes
	$(INSTALL) cpu

signing: $(VENV)/.run  ## install what signing model versions needs, pinned with hashes
	$(INSTALL) signing

slim: $(VENV)/.run  ## delete from .venv what only a GPU needs: 6.5 GB become 4.3 GB; an upgrade brings it back
	@$(BIN)/python -c 'import sys, torch; sys.exit("this machine has a GPU" if torch.cuda.is_available() else 0)'
	$(BIN)/python -P docker/slim.py --without-gpu "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
	$(UV) pip uninstall --quiet --python $(BIN)/python triton

# Not in the cpu image. MLflow requires the first, and imports them only to log models and figures that we have not. The others are for
# metrics, partitions of graphs by torch.compile and builds of extensions: for train and evaluate, which run in the gpu image.
NOT_IN_CPU := scikit-learn skops joblib threadpoolctl narwhals matplotlib contourpy cycler fonttools kiwisolver pyparsing prettytable wcwidth
NOT_IN_CPU += scipy torchvision torch-fidelity networkx setuptools wheel

lock: $(VENV)/bin/uv  ## pin all dependencies with hashes
	$(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --custom-compile-command "make lock" requirements/bootstrap.in -o requirements/bootstrap.txt
	$(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --custom-compile-command "make lock" requirements/build.in -o requirements/build.txt
	$(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --custom-compile-command "make lock" pyproject.toml --extra dev --extra kaggle --extra huggingface-hub --extra formats --extra server --extra sweep --extra signing requirements/bootstrap.txt requirements/build.txt -o requirements/dev.txt
	$(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --custom-compile-command "make lock" -c requirements/dev.txt pyproject.toml requirements/build.txt -o requirements/run.txt
	$(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --custom-compile-command "make lock" -c requirements/dev.txt pyproject.toml --extra bench requirements/build.txt -o requirements/bench.txt
	$(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --custom-compile-command "make lock" -c requirements/dev.txt pyproject.toml --extra kaggle --extra huggingface-hub --extra formats --extra server --extra sweep --no-emit-package triton --no-emit-package nvidia-cusolver $(foreach name,$(NOT_IN_CPU),--no-emit-package $(name)) requirements/build.txt -o requirements/cpu.txt
	$(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --custom-compile-command "make lock" -c requirements/dev.txt pyproject.toml --extra signing requirements/build.txt -o requirements/signing.txt
	for age in oldest too-old; do $(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --custom-compile-command "make lock" requirements/$$age-mlflow.in -o requirements/$$age-mlflow.txt || exit; done

images: $(VENV)/.run  ## build both container images: BASE_IMAGE=..., and REGISTRY=... PUSH=1 for a cluster
	@test -n "$(BASE_IMAGE)" || { echo "BASE_IMAGE is not set: make images BASE_IMAGE=registry.example/python:3.11-slim (docs/kubernetes.md)" >&2; exit 2; }
	$(BIN)/python -m pipeline.images --base-image "$(BASE_IMAGE)" $(if $(REGISTRY),--registry "$(REGISTRY)") $(if $(PUSH),--push) $(IMAGE_FLAGS)

test-images: $(VENV)/.dev  ## build both images and run the smoke pipeline in them; needs docker, podman or buildah
	$(BIN)/pytest -m images -rs

clean:  ## remove caches and the virtual environment, never results
	rm -f $(VENV)/.run $(VENV)/.dev $(VENV)/.bench  # first, so that an interrupted clean is seen
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache *.egg-info

$(VENV)/bin/uv: $(BROKEN)
	$(INSTALL)

$(VENV)/.run: requirements/run.txt requirements/bootstrap.txt pyproject.toml $(BROKEN)
	$(INSTALL) --editable run
	@touch $@

$(VENV)/.dev: requirements/dev.txt requirements/bootstrap.txt pyproject.toml $(BROKEN)
	$(INSTALL) --editable dev
	@touch $@ $(VENV)/.run
