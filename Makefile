# Two commands do everything: `make demo` and `make test`. Each makes .venv first, if it is missing.

VENV := .venv
BIN := $(VENV)/bin
# The first Python of 3.11 or newer that really runs.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
# CUDA builds of the engine where there is an NVIDIA driver, the CPU build elsewhere.
ENGINE ?= $(if $(wildcard /proc/driver/nvidia/version),gpu,cpu)
INSTALLED := $(VENV)/.installed-$(ENGINE)

.PHONY: demo test check format setup clean

demo: setup
	$(BIN)/python scripts/demo.py

# A file's tests share what is slow to make, so a file stays in one process.
test: setup
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n auto --maxprocesses 4 --dist loadfile

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/basedpyright
	$(BIN)/lint-imports

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

setup: $(INSTALLED)

$(INSTALLED): pyproject.toml
	@test -n "$(PYTHON)" || { echo "medtl needs Python 3.11 or newer with venv (Debian: apt install python3-venv)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[$(ENGINE),codecs,sr,sign,openvino,train,export,qat,search,dev]"
	@rm -f $(VENV)/.installed-* && touch $@

clean:
	rm -rf $(VENV) demo-output .pytest_cache .ruff_cache .import_linter_cache
