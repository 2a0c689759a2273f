# One command sets everything up on a fresh machine and runs the main job: `make demo`. One passes the tests: `make test`.
# PYTHON, VENV and TORCH may be overridden: `make demo TORCH=torch` takes the newest PyTorch with its CUDA packages.

PYTHON ?= python3
VENV ?= .venv
TORCH ?= $(if $(wildcard /proc/driver/nvidia/version),torch,torch==2.13.0)
# nnU-Net imports torchvision, and PyPI's newest ones fail beside a torch without CUDA. This one does not.
TORCHVISION ?= torchvision==0.16.2
PYTEST_OPTIONS ?= -n auto
DEMO_OPTIONS ?=

# Installs with these extras and leaves the torch that is there: torchvision, which nnU-Net needs, may ask for another.
COMMA := ,
define install
	$(BIN)/python -m pip install --quiet '.[$(1)]' \
	  "torch==$$($(BIN)/python -c 'import torch; print(torch.__version__.partition("+")[0])')"
	$(BIN)/python -c 'import torchvision' 2>/dev/null || $(BIN)/python -m pip install --quiet --no-deps $(TORCHVISION) || true
endef

BIN := $(abspath $(VENV))/bin
SOURCES := pyproject.toml setup.py $(shell find build_tools csrc mednext mednext_ops -type f \
             ! -name '*.pyc' ! -name '*.so' ! -name '_build_info.json' 2>/dev/null)

.PHONY: demo test lint format clean setup

demo: $(VENV)/.installed
	$(BIN)/mednext demo $(DEMO_OPTIONS)

setup: $(VENV)/.installed

$(VENV)/.torch:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	touch $@

# The package is installed as users have it, not as a link to this folder.
$(VENV)/.installed: $(VENV)/.torch $(SOURCES)
	$(call install,demo$(COMMA)test)
	cd $(VENV) && $(BIN)/python -m mednext_ops.info
	touch $@

# The tests import the installed package: `pytest` (unlike `python -m pytest`) does not put this folder on the path.
# Idle threads sleep: on a shared machine those that spin take the cores from those that work.
test: $(VENV)/.installed
	OMP_WAIT_POLICY=passive $(BIN)/pytest $(PYTEST_OPTIONS)

$(VENV)/.dev: $(VENV)/.torch pyproject.toml
	$(call install,demo$(COMMA)test$(COMMA)dev)
	touch $@

lint: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	find csrc tests -name '*.cu' -o -name '*.cuh' -o -name '*.cpp' -o -name '*.h' | xargs $(BIN)/clang-format --dry-run -Werror

format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	find csrc tests -name '*.cu' -o -name '*.cuh' -o -name '*.cpp' -o -name '*.h' | xargs $(BIN)/clang-format -i

clean:
	rm -rf $(VENV) build dist *.egg-info demo-output
