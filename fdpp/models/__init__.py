"""The families of models that fdpp knows. A new one is a file beside these and a line in ``FAMILIES``."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from fdpp.engine.model import Model
from fdpp.errors import CheckpointError
from fdpp.models import llama, mistral, qwen2, qwen3


@dataclass(frozen=True)
class Family:
    """One family.

    Attributes:
        name: what the classes of transformers begin with: ``Llama`` for ``LlamaForCausalLM`` and ``LlamaModel``.
        model_type: ``model_type`` there, and ``general.architecture`` in a GGUF file.
        build: from the content of ``config.json`` and the names of the tensors of the checkpoint to a model whose
            weights are declared and not yet loaded; raises a CheckpointError where the config makes no sense.
    """

    name: str
    model_type: str
    build: Callable[[Mapping[str, Any], Collection[str]], Model]


FAMILIES = (
    Family("Llama", "llama", llama.build),
    Family("Mistral", "mistral", mistral.build),
    Family("Qwen2", "qwen2", qwen2.build),
    Family("Qwen3", "qwen3", qwen3.build),
)

_BY_MODEL_TYPE = {family.model_type: family for family in FAMILIES}
_CLASS = re.compile(r"(\w+?)(ForCausalLM|Model)")  # LlamaModel is what AutoModel saves: the decoder without its head


def family_of(config: Mapping[str, Any]) -> Family:
    """The family of a ``config.json``, or of what a GGUF file says in its terms.

    ``model_type`` decides, as in transformers; where it is absent, the class in ``architectures`` does. Of a class
    that contradicts ``model_type`` nobody knows what it computes: it is refused.

    Raises:
        CheckpointError: an unknown family, or two.
    """
    model_type, architectures = config.get("model_type"), config.get("architectures")
    if not architectures:
        return _of_model_type(model_type)
    name = architectures[0] if isinstance(architectures, list) else architectures
    found = _CLASS.fullmatch(name) if isinstance(name, str) else None
    # LLaMAForCausalLM is how the first conversions of Llama spelled it.
    family = next((family for family in FAMILIES if found and family.name.lower() == found[1].lower()), None)
    if family is None:
        raise CheckpointError(f"unknown architecture {name!r:.80}; known are {', '.join(_BY_MODEL_TYPE)}")
    if model_type is not None and _of_model_type(model_type) is not family:
        raise CheckpointError(f"architectures names {name!r:.80}, model_type {model_type!r:.80}: expected one family")
    return family


def _of_model_type(model_type: object) -> Family:
    if not isinstance(model_type, str) or model_type not in _BY_MODEL_TYPE:
        raise CheckpointError(f"unknown architecture {model_type!r:.80}; known are {', '.join(_BY_MODEL_TYPE)}")
    return _BY_MODEL_TYPE[model_type]
