# `make demo` shows the comparison, `make test` runs the tests, `make check` runs everything CI runs.
#
# PIP_EXTRA_INDEX_URL (pip's own variable) may name an index that offers smaller torch builds, for
# example CPU-only ones. TORCH replaces the requirement itself: make demo TORCH=./torch-2.13.0.whl

PYTHON ?= python3
VENV   ?= .venv
TORCH  ?= $(shell grep '^torch==' constraints.txt)

BIN     := $(VENV)/bin
PIP     := $(BIN)/python -m pip --disable-pip-version-check
OFFLINE := HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1
# Two workers more than cores: those that run federations mostly wait for them.
# Dozens of processes import the same files: what they are compiled to is kept.
PYTEST  := $(OFFLINE) PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n 4 --dist loadgroup
# What compares numbers closely enough for a processor to matter.
NUMERIC := $(patsubst %.py,tests/%.py,aggregate/test_mean.py codec/test_codec.py \
           engines/test_many_clients.py model/test_blocks.py model/test_fast.py \
           modes/test_knowledge.py modes/test_logits.py modes/test_params.py \
           numerics/test_metrics.py numerics/test_tensors.py training/test_loop.py \
           wire/test_golden.py)
# Of the architectures those that differ in arithmetic: the others are made of the same kernels.
ALIKE   := phi3 or falcon or bloom or opt- or -opt] or gpt_neox or distilbert or electra or mpnet
CODE    := $(wildcard src tests benchmarks examples runs conftest.py)

# peft imports bitsandbytes wherever it is, which takes each of the tests' processes two seconds:
# it lies beside the environment, for the tests that need it.
QUANTISED := $(VENV)/quantised

.DEFAULT_GOAL := help
.PHONY: help demo test check lint covered quantised processors format docs-check clean

help:  ## this list
	@grep -E '^[a-z-]+:.*## ' Makefile | sed -E 's/:.*## /\t/' | expand -t 14

demo: $(VENV)/.installed  ## fetch a small model and real texts, then compare the three modes on them
	$(BIN)/triskel assets get
	$(BIN)/triskel compare

test: $(VENV)/.installed-dev  ## the tests, offline
	$(PYTEST)

check: lint covered quantised processors  ## everything CI runs: lint, tests with branch coverage, other processors

lint: $(VENV)/.installed-dev  ## formatting, style, types and floors
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/ruff check $(CODE)
	$(BIN)/python -m pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

covered: $(VENV)/.installed-dev
	TRISKEL_COVERED=1 $(PYTEST)

quantised: $(QUANTISED)/.installed  ## tests of a base in 4 or 8 bit
	PYTHONPATH=$(QUANTISED) $(PYTEST) -n 2 tests/model/test_quantised.py

$(QUANTISED)/.installed: $(VENV)/.installed-dev
	$(PIP) install --no-deps --target $(QUANTISED) -c constraints.txt bitsandbytes
	@touch $@

# ATen, oneDNN and MKL each choose kernels by the processor, and take orders to choose lesser ones.
# Where there is no AVX-512, all tests ran without it.
LESSER := $(if $(shell grep -s -m 1 -o avx512f /proc/cpuinfo),processor-avx2) processor-default
processors: $(LESSER)  ## numeric tests as on processors without AVX-512, without AVX2

processor-%: $(VENV)/.installed-dev
	ATEN_CPU_CAPABILITY=$* ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2 \
	  $(PYTEST) -n 2 -k 'not ($(ALIKE))' $(NUMERIC)

format: $(VENV)/.installed-dev  ## rewrite the code in the house's format
	$(BIN)/ruff format $(CODE)
	$(BIN)/ruff check --fix $(CODE)

docs-check: $(VENV)/.installed-dev  ## code blocks, commands and links of README.md and docs/
	$(OFFLINE) $(BIN)/python -m pytest tests/docs/test_docs.py

clean:  ## remove the environment and everything the checks write
	rm -rf $(VENV) build dist .hypothesis
	rm -rf .import_linter_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.created:
	@command -v $(PYTHON) >/dev/null || { echo "Triskel needs Python 3.11 or newer, and '$(PYTHON)' was not found: install it, or name yours with PYTHON=/path/to/python3." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Triskel needs Python 3.11 or newer, and '$(PYTHON)' is $$($(PYTHON) -c 'import platform; print(platform.python_version())'): name a newer one with PYTHON=/path/to/python3." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

# torch first, on its own: the largest download, and the one a user may want to replace.
$(VENV)/.installed: $(VENV)/.created pyproject.toml constraints.txt
	$(PIP) install '$(TORCH)' -c constraints.txt
	$(PIP) install -e . -c constraints.txt
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) install -e '.[dev]' -c constraints.txt
	@touch $@
