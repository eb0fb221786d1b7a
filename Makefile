# make demo | make test | make check | make bench: each sets up what it needs in .venv, and does it once.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Any of these will do, unless CXX says which (make itself sets CXX to g++ by default).
COMPILERS := $(if $(filter default,$(origin CXX)),c++ g++ clang++,$(firstword $(CXX)))
SOURCES := pyproject.toml constraints.txt CMakeLists.txt $(wildcard kernels/cpu/*)
TYPES := build/types/headrace
# An editable install also puts this folder on sys.path, where our kernels/ would hide the package of that name on PyPI. The
# import hook that it installs is all that is needed.
UNPATH = @sed -i '/^import /!d' $(VENV)/lib/python3*/site-packages/_editable_skbc_headrace.pth

.PHONY: demo test check bench format clean
.DELETE_ON_ERROR:

demo: $(VENV)/.run
	$(BIN)/headrace generate demo "In the beginning" --max-new-tokens 120 --temperature 0.6 --top-p 0.9 --seed 3

test: $(VENV)/.dev
	$(BIN)/python -m pytest -q

bench: $(VENV)/.dev
	$(BIN)/python benchmarks/bench_kernels.py

check: $(VENV)/.dev $(TYPES)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	MYPYPATH=build/types $(BIN)/mypy -p headrace

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(VENV)/.run: $(SOURCES) | $(VENV)/pyvenv.cfg
	@for c in $(COMPILERS); do command -v $$c >/dev/null && exit 0; done; \
	  echo "headrace needs a C++17 compiler, and there is no $(COMPILERS): install one (Debian, Ubuntu: apt install g++)"; exit 1
	$(BIN)/pip install -q -c constraints.txt -e .
	$(UNPATH)
	@touch $@

$(VENV)/.dev: $(VENV)/.run
	$(BIN)/pip install -q -c constraints.txt -e '.[dev]'
	$(UNPATH)
	@touch $@

$(VENV)/pyvenv.cfg:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "headrace needs Python 3.10 or newer; '$(PYTHON)' is older: make PYTHON=python3.11 ..."; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { \
	  echo "python cannot make a virtual environment: install its venv module (Debian, Ubuntu: apt install python3-venv)"; exit 1; }

# The package as the build lays it out, in links, for tools that do not read the build's mapping.
$(TYPES): Makefile
	@mkdir -p $@
	@for part in engine kernels loaders cli.py errors.py __main__.py py.typed; do ln -sfn ../../../$$part $@/$$part; done
	@ln -sfn ../../../package/__init__.py $@/__init__.py
	@touch $@

clean:
	rm -rf build $(VENV) .mypy_cache .ruff_cache .pytest_cache
