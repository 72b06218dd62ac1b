"""The families that fdpp knows. A new one is a file beside these and a line in ``FAMILIES``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fdpp.engine.families.base import Family
from fdpp.engine.families.llama import LLAMA
from fdpp.engine.families.mistral import MISTRAL
from fdpp.engine.families.qwen2 import QWEN2
from fdpp.engine.families.qwen3 import QWEN3
from fdpp.errors import CheckpointError

FAMILIES = (LLAMA, MISTRAL, QWEN2, QWEN3)

_BY_ARCHITECTURE = {family.architecture: family for family in FAMILIES}
_BY_MODEL_TYPE = {family.model_type: family for family in FAMILIES}


def family_of_config(config: Mapping[str, Any]) -> Family:
    """The family of a Hugging Face ``config.json``: by ``architectures``, or by ``model_type`` where that is absent."""
    architectures = config.get("architectures")
    if not architectures:
        return family_of_model_type(config.get("model_type"))
    name = architectures[0] if isinstance(architectures, list) else architectures
    if not isinstance(name, str) or name not in _BY_ARCHITECTURE:
        raise CheckpointError(f"unknown architecture {name!r:.80}; known are {', '.join(_BY_ARCHITECTURE)}")
    return _BY_ARCHITECTURE[name]


def family_of_model_type(model_type: object) -> Family:
    """The family of a ``model_type``, which is also a GGUF file's ``general.architecture``."""
    if not isinstance(model_type, str) or model_type not in _BY_MODEL_TYPE:
        raise CheckpointError(f"unknown architecture {model_type!r:.80}; known are {', '.join(_BY_MODEL_TYPE)}")
    return _BY_MODEL_TYPE[model_type]
