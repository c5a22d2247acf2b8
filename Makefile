# What a developer or a first-time user types. `make` alone lists it.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin

# The native library is compiled on this machine. GCC 12 and older compile llama.cpp's AMX kernels into a crash (llama.cpp #20824),
# so CPUs that have AMX are built for without it.
AMX_FLAGS := $(shell grep -qw amx_tile /proc/cpuinfo 2>/dev/null && echo -mno-amx-tile -mno-amx-int8 -mno-amx-bf16)
NATIVE_CFLAGS   := $(strip $(CFLAGS) $(AMX_FLAGS))
NATIVE_CXXFLAGS := $(strip $(CXXFLAGS) $(AMX_FLAGS))
# pip's wheel cache does not know the flags a wheel was built with: one cache folder for each set of flags.
NATIVE_KEY   := $(shell printf '%s|%s|%s' '$(NATIVE_CFLAGS)' '$(NATIVE_CXXFLAGS)' '$(CMAKE_ARGS)' | cksum | cut -d' ' -f1)
# …and one mark for each, so that another CMAKE_ARGS compiles anew.
BASE := $(VENV)/.base-$(NATIVE_KEY)
NATIVE_CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/edgeai/native-$(NATIVE_KEY)
PIP := $(BIN)/python -m pip --disable-pip-version-check

# Tests that record what they prove (tests/ledger.py).
PROOFS := tests/converters/test_families.py tests/converters/test_imports.py tests/converters/test_lora.py tests/converters/test_pickled.py \
	tests/converters/test_minilm.py tests/cli/test_convert_lora.py tests/test_real_models.py

.DEFAULT_GOAL := help
.PHONY: help run dev test check table bench clean

help: ## list the targets
	@awk -F':.*## ' '/^[a-z]+:.*## /{printf "  make %-8s%s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: $(BASE) ## install, pull a small model, answer a question
	$(BIN)/edgeai run smollm2 "What is the sun? Answer in one sentence." --pull --seed 1

dev: $(VENV)/.dev ## install torch and the rest, to train and to convert

test: $(VENV)/.dev ## run the whole test suite
	$(BIN)/python -m pytest

check: $(VENV)/.dev ## style, types and layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

table: $(VENV)/.dev ## run the proofs of all families and draw README's table from them
	EDGEAI_RECORD_PROOFS=1 $(BIN)/python -m pytest -q $(PROOFS)

bench: $(VENV)/.dev ## measure against peers; results go to bench/results
	$(BIN)/python bench/run_all.py

clean: ## remove the environment and what tools left behind; models stay
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit("edgeai needs Python 3.11 or newer, and $(PYTHON) is " + sys.version.split()[0] + ": make PYTHON=python3.12") if sys.version_info < (3, 11) else 0'
	$(PYTHON) -m venv $(VENV)

# Without torch: running a model needs none.
$(BASE): pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) install -q -c constraints.txt pip
	@echo "compiling llama.cpp for this machine: about 5 minutes on 2 cores, once"
	CFLAGS="$(NATIVE_CFLAGS)" CXXFLAGS="$(NATIVE_CXXFLAGS)" CMAKE_ARGS="$(CMAKE_ARGS)" \
		$(PIP) install -q -c constraints.txt --cache-dir "$(NATIVE_CACHE)" \
		--force-reinstall --no-deps llama-cpp-python
	$(PIP) install -q -c constraints.txt -e .
	@rm -f $(VENV)/.base-*
	@touch $@

$(VENV)/.dev: $(BASE)
	$(PIP) install -q -c constraints.txt -e ".[dev]"
	@touch $@
