"""The families that fdpp knows. A new one is a file beside these and a line in ``FAMILIES``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from fdpp.engine.families.base import Family
from fdpp.engine.families.llama import LLAMA
from fdpp.engine.families.mistral import MISTRAL
from fdpp.engine.families.qwen2 import QWEN2
from fdpp.engine.families.qwen3 import QWEN3
from fdpp.errors import CheckpointError

FAMILIES = (LLAMA, MISTRAL, QWEN2, QWEN3)

_BY_MODEL_TYPE = {family.model_type: family for family in FAMILIES}
_CLASS = re.compile(r"(\w+?)(ForCausalLM|Model)")  # LlamaModel is what AutoModel saves: the decoder without its head


def family_of_config(config: Mapping[str, Any]) -> Family:
    """The family of a Hugging Face ``config.json``.

    ``model_type`` decides, as in transformers; where it is absent, the class in ``architectures`` does. Of a class
    that contradicts ``model_type`` nobody knows what it computes: it is refused.
    """
    model_type, architectures = config.get("model_type"), config.get("architectures")
    if not architectures:
        return family_of_model_type(model_type)
    name = architectures[0] if isinstance(architectures, list) else architectures
    found = _CLASS.fullmatch(name) if isinstance(name, str) else None
    # LLaMAForCausalLM is how the first conversions of Llama spelled it.
    family = next((family for family in FAMILIES if found and family.name.lower() == found[1].lower()), None)
    if family is None:
        raise CheckpointError(f"unknown architecture {name!r:.80}; known are {', '.join(_BY_MODEL_TYPE)}")
    if model_type is not None and family_of_model_type(model_type) is not family:
        raise CheckpointError(f"architectures names {name!r:.80}, model_type {model_type!r:.80}: expected one family")
    return family


def family_of_model_type(model_type: object) -> Family:
    """The family of a ``model_type``, which is also a GGUF file's ``general.architecture``."""
    if not isinstance(model_type, str) or model_type not in _BY_MODEL_TYPE:
        raise CheckpointError(f"unknown architecture {model_type!r:.80}; known are {', '.join(_BY_MODEL_TYPE)}")
    return _BY_MODEL_TYPE[model_type]
