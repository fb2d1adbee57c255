# Each target does all of its own set-up in .venv; the second time that takes no time.
#   make quickstart    train and query a small model on the text in examples/quickstart
#   make test          lint, types and tests (minutes, offline once set up)
#   make test-slow     the tests marked slow
# PYTHON=python3.12 chooses the interpreter. TORCH=... replaces the pinned torch by any pip requirement:
# a version (TORCH=torch==2.12.1) or a file (TORCH=/path/to/torch.whl).

PYTHON ?= python3
TORCH ?= $(shell grep '^torch==' constraints.txt)
VENV ?= .venv
JOBS ?= 2

BIN := $(VENV)/bin
SOURCES := $(wildcard fairseq/csrc/*/*.cpp fairseq/csrc/*/*.cu fairseq/csrc/*/*.h)
# One thread per process: the tests already run on all cores side by side.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1

.PHONY: setup test test-slow check quickstart clean
.DELETE_ON_ERROR:

setup: $(VENV)/installed

$(VENV)/created:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "setuptools>=77" wheel
	touch $@

# Changes when another torch is asked for, and only then.
$(VENV)/wanted-torch: $(VENV)/created FORCE
	@echo "$(TORCH)" | cmp -s - $@ || echo "$(TORCH)" > $@

$(VENV)/torch: $(VENV)/wanted-torch
	$(BIN)/python -m pip install "$(TORCH)"
	touch $@

$(VENV)/installed: $(VENV)/torch setup.py pyproject.toml constraints.txt $(SOURCES)
	grep -v '^torch==' constraints.txt > $(VENV)/constraints.txt
	$(BIN)/python -m pip install --no-build-isolation --use-pep517 -c $(VENV)/constraints.txt -e ".[test]"
	$(BIN)/fairseq-info
	touch $@

FORCE:

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: check
	$(ONE_THREAD) $(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m "not slow and not gpu"

test-slow: setup
	$(BIN)/python -m pytest -m "slow and not gpu"

quickstart: setup
	$(BIN)/python examples/quickstart/run.py

clean:
	rm -rf $(VENV) build *.egg-info fairseq/ops/*.so
