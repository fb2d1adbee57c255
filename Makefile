# Each target does all of its own set-up in .venv; the second time that takes no time.
#   make quickstart    train and query a small model on the text in examples/quickstart
#   make test          lint, types and tests (minutes, offline once set up)
#   make test-slow     the tests marked slow
#   make fresh         make test as on a new machine: a copy of this tree, a new environment, no cache of pip
#   make gpu           what a GPU does with all of this, in seven minutes: needs torch with CUDA, no network, no set-up
#   make gpu-wheels    the packages that such a machine may lack, into WHEEL_DIR (wheels)
#   make dist          the source package and the wheel, in dist
#   make lock          renew constraints.txt, the exact versions that all of the above install
# PYTHON=python3.12 chooses the interpreter. TORCH=... replaces the locked torch by any pip requirement:
# a version (TORCH=torch==2.12.1) or a file (TORCH=/path/to/torch.whl).

PYTHON ?= python3
TORCH ?= $(shell grep '^torch==' constraints.txt)
VENV ?= .venv
JOBS ?= 2
GPU_SECONDS ?= 420
WHEEL_DIR ?= wheels

BIN := $(VENV)/bin
LOG := $(VENV)/setup.log
SOURCES := $(wildcard fairseq/csrc/*/*.cpp fairseq/csrc/*/*.cu fairseq/csrc/*/*.h)
# One thread per process: the tests already run on all cores side by side.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1

# The locked versions without torch, which TORCH may replace, and without what torch pins itself.
LOCK := $(VENV)/constraints.txt
PIP := $(BIN)/python -m pip --no-input
# Nothing is built from source but this project and antlr4-python3-runtime (for hydra), which has no wheel.
WHEELS := --only-binary=:all: --no-binary=antlr4-python3-runtime --no-build-isolation
HELP_PIP := Is the package index reachable (pip config list), and is there room on the disk?
HELP_TORCH := TORCH=... takes another version or a wheel file.
HELP_VENV := Python 3.10 to 3.13 with venv is needed (Debian: apt install python3-venv); PYTHON=... chooses another.

.PHONY: setup test test-slow check gpu gpu-wheels quickstart fresh dist lock clean
.DELETE_ON_ERROR:

# $(call step,what is done,command,what to do when it fails): one line of progress, everything else into the log.
define step
	@echo "setup: $(1)"
	@{ $(2); } >> $(LOG) 2>&1 || { tail -n 15 $(LOG); \
		echo "setup: failed: $(1)"; echo "setup: $(3) All of the output is in $(LOG)."; exit 1; }
endef

setup: $(VENV)/installed

$(VENV)/tools: constraints.txt
	@mkdir -p $(VENV)
	$(call step,a new environment in $(VENV),$(PYTHON) -m venv $(VENV),$(HELP_VENV))
	@grep -vE '^(torch|triton|nvidia-|cuda-)' constraints.txt > $(LOCK)
	$(call step,pip and setuptools,$(PIP) install -c $(LOCK) pip setuptools wheel,$(HELP_PIP))
	@touch $@

# Changes when another torch is asked for, and only then.
$(VENV)/wanted-torch: $(VENV)/tools FORCE
	@echo "$(TORCH)" | cmp -s - $@ || echo "$(TORCH)" > $@

$(VENV)/torch: $(VENV)/wanted-torch
	$(call step,$(TORCH) (a large download),$(PIP) install -c $(LOCK) $(WHEELS) "$(TORCH)",$(HELP_TORCH) $(HELP_PIP))
	@touch $@

$(VENV)/installed: $(VENV)/torch setup.py pyproject.toml constraints.txt $(SOURCES)
	$(call step,this project and what it needs; compiles the operators (a minute or two),\
		$(PIP) install -c $(LOCK) $(WHEELS) -e ".[test]",$(HELP_PIP))
	$(call step,fairseq-info,$(BIN)/fairseq-info,The installed package does not start.)
	@touch $@

FORCE:

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: check
	$(ONE_THREAD) $(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m "not slow and not gpu"

test-slow: setup
	$(BIN)/python -m pytest -m "slow and not gpu"

# With the Python that has a CUDA build of torch, not the one in $(VENV); the tests marked gpu are one of its steps.
GPU_JSON := benchmarks/results/gpu.json
GIVEN_WHEELS = $(if $(wildcard $(WHEEL_DIR)/*.whl),--wheels $(WHEEL_DIR))
gpu:
	$(PYTHON) benchmarks/gpu.py --seconds $(GPU_SECONDS) --json $(GPU_JSON) $(GIVEN_WHEELS)
	-$(PYTHON) benchmarks/gpu.py --picture $(GPU_JSON) $(GIVEN_WHEELS)

gpu-wheels:
	$(PYTHON) -m pip wheel --no-deps --wheel-dir $(WHEEL_DIR) -c constraints.txt hydra-core omegaconf antlr4-python3-runtime

quickstart: setup
	$(BIN)/python examples/quickstart/run.py

# The files that git knows or would add, as they are now: nothing that an earlier build or run left behind.
fresh:
	@directory=$$(mktemp -d) && trap 'rm -rf "$$directory"' EXIT && \
	git ls-files -coz --exclude-standard | tar --null -T - --ignore-failed-read -cf - | tar -C "$$directory" -xf - && \
	cd "$$directory" && git init -q && git add -A && PIP_NO_CACHE_DIR=1 $(MAKE) test VENV=.venv

dist: setup
	$(BIN)/python -m build --no-isolation --outdir dist .

# One file for every supported Python and system. uv resolves; what installs is pip.
lock:
	$(PYTHON) -m venv $(VENV)-lock
	$(VENV)-lock/bin/pip install --quiet uv
	echo "$(TORCH)" > $(VENV)-lock/torch.txt
	printf 'pip\nsetuptools>=77\nwheel\n' > $(VENV)-lock/tools.in
	$(VENV)-lock/bin/uv pip compile --universal --upgrade --no-python-downloads --python-version 3.10 --extra test \
		--no-annotate --custom-compile-command "make lock" --constraints $(VENV)-lock/torch.txt \
		--output-file constraints.txt pyproject.toml $(VENV)-lock/tools.in

clean:
	rm -rf $(VENV) $(VENV)-lock build dist *.egg-info fairseq/ops/*.so
