# make demo | make test | make check | make bench: each sets up what it needs in .venv, and does it once.
# make target: the Triton of the machine that the GPU kernels are meant for, in a folder beside .venv, for the tests.
# make vendor: the libraries of the page of headrace serve, anew from npm. make node-tools: what tests with Node need.
# make gpu-kit: a wheel and compiled kernels for that machine, to carry there.
# make wheel: what is released, into dist/. make sanitize-address, -undefined, -thread: the C++ under a sanitizer.

PYTHON ?= python3
# Processes that share the tests.
JOBS ?= 2
VENV := .venv
BIN := $(VENV)/bin
# Any of these will do, unless CXX says which (make itself sets CXX to g++ by default).
COMPILERS := $(if $(filter default,$(origin CXX)),c++ g++ clang++,$(firstword $(CXX)))
# What is compiled, and how; not what Python leaves beside it, which is newer after every first run.
CPP := $(filter %.cpp %.h %.inl,$(wildcard kernels/cpu/*/* kernels/cpu/*/*/*))
SOURCES := pyproject.toml constraints.txt CMakeLists.txt $(CPP)

.PHONY: demo test check bench target gpu-kit vendor node-tools wheel sanitize-address sanitize-undefined sanitize-thread format clean
.DELETE_ON_ERROR:

demo: $(VENV)/.run
	$(BIN)/headrace generate demo "In the beginning" --max-new-tokens 120 --temperature 0.6 --top-p 0.9 --seed 3

test: $(VENV)/.dev target
	$(BIN)/python -m pytest -q -n $(JOBS) --dist worksteal

bench: $(VENV)/.dev
	$(BIN)/python benchmarks/bench_kernels.py

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	MYPYPATH=src $(BIN)/mypy -p headrace

target: build/target/.done

# A test run does without it where it cannot be had.
build/target/.done: target.txt | $(VENV)/.dev
	@rm -rf $(@D)
	@$(BIN)/pip install -q --no-deps --target $(@D) -r target.txt && touch $@ || { rm -rf $(@D); \
	  echo "pip cannot install what target.txt names: tests with those versions are skipped"; }

gpu-kit: $(VENV)/.dev
	$(BIN)/python benchmarks/gpu_kit.py

wheel: $(VENV)/pyvenv.cfg
	$(BIN)/python tools/wheels.py

sanitize-address sanitize-undefined sanitize-thread: $(VENV)/.dev
	$(BIN)/python tools/sanitize.py $(@:sanitize-%=%)

# The page's libraries, from npm as its lock pins them. They are kept in git: who builds needs no Node.
vendor:
	$(PYTHON) benchmarks/vendor_page.py

# What tests with Node need: clients of the server, and besides Chromium what drives the page. What is installed by half is removed.
node-tools:
	@for d in tests/server/node tests/server/page/browser; do \
	  (cd $$d && timeout 120 npm ci --ignore-scripts --no-audit --no-fund --fetch-retries 1 --fetch-timeout 20000) || { \
	    rm -rf $$d/node_modules; echo "npm cannot install what $$d needs: its tests are skipped"; exit 1; }; done

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(VENV)/.run: $(SOURCES) | $(VENV)/pyvenv.cfg
	@for c in $(COMPILERS); do command -v $$c >/dev/null && exit 0; done; \
	  echo "headrace needs a C++17 compiler, and there is no $(COMPILERS): install one (Debian, Ubuntu: apt install g++)"; exit 1
	$(BIN)/pip install -q -c constraints.txt -e .
	@touch $@

# Of the package that is there only what developing needs more: installing it anew would compile everything a second time.
$(VENV)/.dev: $(VENV)/.run
	$(BIN)/pip install -q -c constraints.txt 'headrace[dev]'
	@touch $@

$(VENV)/pyvenv.cfg:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "headrace needs Python 3.10 or newer; '$(PYTHON)' is older: make PYTHON=python3.11 ..."; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { \
	  echo "python cannot make a virtual environment: install its venv module (Debian, Ubuntu: apt install python3-venv)"; exit 1; }

clean:
	rm -rf build dist $(VENV) .mypy_cache .ruff_cache .pytest_cache
