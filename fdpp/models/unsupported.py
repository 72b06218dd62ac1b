"""Architectures that fdpp does not have: the nearest one that it has, and what is missing."""

from __future__ import annotations

import difflib
from collections.abc import Collection

_EXPERTS = "mixtures of experts"
_STATE = "recurrent layers"
_CONV1D = "weights that are stored transposed"
_LATENT = "attention with a latent cache"

#: By ``model_type``, or the class, without underscores and in lower case.
_MISSING = {
    "arcee": ("llama", "squared ReLU"),
    "bitnet": ("llama", "ternary weights"),
    "codegen": ("gpt_neox", "its order of queries, keys and values"),
    "cohere": ("stablelm", "layer norms of the heads and scaled logits"),
    "cohere2": ("stablelm", "layers without rope in a parallel block"),
    "dbrx": ("mpt", _EXPERTS),
    "deepseekv2": ("llama", f"{_LATENT} and {_EXPERTS}"),
    "deepseekv3": ("llama", f"{_LATENT} and {_EXPERTS}"),
    "exaone4": ("olmo2", "layers without rope"),
    "gemma": ("gemma2", "layers without norms after"),
    "gemma3n": ("gemma3_text", "per-layer embeddings"),
    "gemma4": ("gemma3_text", "per-layer embeddings and shared caches"),
    "glm4moe": ("glm4", _EXPERTS),
    "gpt2": ("gpt_neox", f"learned positions beside {_CONV1D}"),
    "gptbigcode": ("starcoder2", "learned positions beside merged multi-query projections"),
    "gptj": ("gpt_neox", "one norm for attention and MLP and a bias of the head"),
    "gptoss": ("mistral", f"{_EXPERTS} and attention sinks"),
    "granitemoe": ("granite", _EXPERTS),
    "internlm2": ("llama", "its order of queries, keys and values"),
    "jamba": ("llama", _STATE),
    "llama4": ("llama", _EXPERTS),
    "mamba": ("llama", _STATE),
    "mamba2": ("llama", _STATE),
    "mixtral": ("mistral", _EXPERTS),
    "nemotron": ("stablelm", "squared ReLU"),
    "olmo": ("olmo2", "norms without weights"),
    "olmo3": ("olmo2", "sliding windows and two rotary embeddings"),
    "olmoe": ("olmo2", _EXPERTS),
    "phi": ("gpt_neox", "separate projections and a bias of the head"),
    "phimoe": ("phi3", _EXPERTS),
    "qwen": ("qwen2", "its merged projections"),
    "qwen2moe": ("qwen2", _EXPERTS),
    "qwen3moe": ("qwen3", _EXPERTS),
    "qwen3next": ("qwen3", f"{_STATE} and {_EXPERTS}"),
    "recurrentgemma": ("gemma2", _STATE),
    "rwkv": ("llama", _STATE),
}


def nearest(name: str, known: Collection[str]) -> str:
    """What to say of an architecture: ``"; the nearest is ...; ... are missing"``, or nothing."""
    plain = name.lower().replace("_", "").replace("-", "")
    if plain in _MISSING:
        family, missing = _MISSING[plain]
        return f"; the nearest is {family}, which lacks {missing}"
    close = difflib.get_close_matches(plain, known, 1)
    return f"; the nearest name is {close[0]}" if close else ""
