"""Models of transformers beside their accelerated copies."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("transformers")

from fdpp.integrations import transformers as integration  # noqa: E402
from fdpp.integrations.transformers import attention  # noqa: E402
from tests.integrations.families import eager_model  # noqa: E402


@pytest.fixture(autouse=True)
def no_gradients():
    """A test that wants gradients says so."""
    with torch.no_grad():
        yield


@pytest.fixture(scope="session")
def eager():
    """A function from a family to its model, with eager attention. The model is shared: nobody changes it."""
    made: dict[str, torch.nn.Module] = {}

    def make(family: str) -> torch.nn.Module:
        if family not in made:
            made[family] = eager_model(family)
        return made[family]

    return make


@pytest.fixture
def pair(eager):
    """A function from a family to its model and an accelerated copy of it."""

    def make(family: str, **options: bool) -> tuple[torch.nn.Module, torch.nn.Module]:
        model = eager(family)
        return model, integration.accelerate(copy.deepcopy(model), **options)

    return make


@pytest.fixture
def steps(monkeypatch):
    """The calls of decode_attention, as the shapes of their queries and their options."""
    seen = []
    operator = attention.ops.decode_attention

    def count(query, *arguments, **options):
        seen.append((tuple(query.shape), options))
        return operator(query, *arguments, **options)

    monkeypatch.setattr(attention, "ops", SimpleNamespace(decode_attention=count))
    return seen
