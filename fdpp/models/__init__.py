"""The families of models that fdpp knows. A new one is a file beside these and a line in ``FAMILIES``."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from fdpp.engine.model import Model
from fdpp.errors import CheckpointError
from fdpp.models import (
    bloom,
    chatglm,
    falcon,
    gemma,
    glm,
    gpt_neox,
    granite,
    llama,
    ministral,
    mistral,
    mpt,
    olmo2,
    opt,
    phi3,
    qwen2,
    qwen3,
    smollm3,
    stablelm,
    starcoder2,
)
from fdpp.models.unsupported import nearest


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
    Family("OPT", "opt", opt.build),
    Family("ChatGLM", "chatglm", chatglm.build),
    Family("Glm", "glm", glm.build_glm),
    Family("Glm4", "glm4", glm.build_glm4),
    Family("Gemma2", "gemma2", gemma.build_gemma2),
    Family("Gemma3", "gemma3_text", gemma.build_gemma3),
    Family("Phi3", "phi3", phi3.build),
    Family("Granite", "granite", granite.build),
    Family("Olmo2", "olmo2", olmo2.build),
    Family("GPTNeoX", "gpt_neox", gpt_neox.build),
    Family("Bloom", "bloom", bloom.build),
    Family("Mpt", "mpt", mpt.build),
    Family("Starcoder2", "starcoder2", starcoder2.build),
    Family("Falcon", "falcon", falcon.build),
    Family("StableLm", "stablelm", stablelm.build),
    Family("SmolLM3", "smollm3", smollm3.build),
    Family("Ministral", "ministral", ministral.build),
)

_BY_MODEL_TYPE = {family.model_type: family for family in FAMILIES}
_BY_CLASS = {family.name.lower(): family for family in FAMILIES}
# LlamaModel is what AutoModel saves: the decoder without its head.
_CLASS = re.compile(r"(\w+?)(ForCausalLM|ForConditionalGeneration|LMHeadModel|Model)")


def family_of(config: Mapping[str, Any]) -> Family:
    """The family of a ``config.json``, or of what a GGUF file says in its terms.

    ``model_type`` decides, as in transformers; where it is absent, the class in ``architectures`` does. Of a class
    that contradicts ``model_type`` nobody knows what it computes: it is refused.

    Raises:
        CheckpointError: an unknown family, or two.
    """
    model_type, architectures = config.get("model_type"), config.get("architectures")
    if not architectures:
        return _known(_BY_MODEL_TYPE, model_type, model_type)
    name = architectures[0] if isinstance(architectures, list) else architectures
    found = _CLASS.fullmatch(name) if isinstance(name, str) else None
    # LLaMAForCausalLM is how the first conversions of Llama spelled it.
    family = _known(_BY_CLASS, found and found[1].lower(), name)
    if model_type is not None and _known(_BY_MODEL_TYPE, model_type, model_type) is not family:
        raise CheckpointError(f"architectures names {name!r:.80}, model_type {model_type!r:.80}: expected one family")
    return family


def _known(families: Mapping[str, Family], key: object, name: object) -> Family:
    if isinstance(key, str) and key in families:
        return families[key]
    hint = nearest(key, _BY_MODEL_TYPE) if isinstance(key, str) else ""
    raise CheckpointError(f"unknown architecture {name!r:.80}{hint}; known are {', '.join(_BY_MODEL_TYPE)}")
