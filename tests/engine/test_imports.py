"""``import fdpp`` needs torch alone; the rest comes when it is asked for."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import sys
import fdpp
import torch
heavy = {"transformers", "tokenizers", "safetensors", "gguf", "huggingface_hub", "fdpp.engine"} & set(sys.modules)
assert not heavy, heavy
assert torch.ops.fdpp.linear and fdpp.ops.linear and fdpp.__version__
assert fdpp.LLM.__name__ == "LLM"
try:
    fdpp.nonsense
except AttributeError as error:
    assert "nonsense" in str(error)
else:
    raise AssertionError("fdpp.nonsense exists")
"""


def test_import_needs_torch_alone():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
