"""A Hugging Face model in llama.cpp's terms: metadata, tokenizer and tensors of a GGUF file.

The sizes are those of the model that fdpp has built; what its family adds stands in its config. The metadata are read
again before anything is written: a model of which they cannot say everything is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fdpp.checkpoints.base import Checkpoint
from fdpp.checkpoints.gguf import part_of, reordering
from fdpp.checkpoints.gguf_architectures import ARCHITECTURES, Architecture, architecture_of, architectures_for
from fdpp.checkpoints.gguf_names import hugging_face_config, stored_name, tensor_name
from fdpp.checkpoints.gguf_writer import Content, NewTensor, typed
from fdpp.engine.layers import Attention, Mlp
from fdpp.engine.model import Model
from fdpp.engine.rope import inverse_frequencies
from fdpp.errors import CheckpointError
from fdpp.export.comparison import first_difference
from fdpp.models import family_of
from fdpp.rope_config import Llama3Scaling, LongRopeScaling, RopeConfig, YarnScaling, yarn_magnitude
from fdpp.tokenizers.gguf_export import gguf_tokenizer


def content_of(checkpoint: Checkpoint, model: Model, title: str) -> Content:
    """What a GGUF file of the model holds.

    Args:
        checkpoint: of the model.
        model: as it is declared, without its weights.
        title: ``general.name``.

    Raises:
        CheckpointError: llama.cpp has no architecture of that kind, or a file cannot say what this model is.
    """
    wanted = {source.name: source.stored_shape for weight in model.weights() for source in weight.sources}
    name, architecture, names = _architecture(checkpoint, wanted)
    rope_tensors = _rope_tensors(model)
    metadata = {"general.type": "model", "general.name": title, **_metadata(checkpoint, model, name, architecture)}
    metadata |= gguf_tokenizer(checkpoint.tokenizer, model.vocab_size, checkpoint.eos_token_ids)
    factors = {key: tensor.tolist() for key, (_, tensor) in rope_tensors.items() if key.endswith("_factor")}
    stored = [*names, *(stored for stored, _ in rope_tensors.values())]
    again = {new: tensor_name(architecture, new) for new in stored}
    config = hugging_face_config(
        {"general.architecture": name, **metadata}, architecture_of(name, stored), again.values(), factors
    )
    read = family_of(config).build(config, again.values())
    if found := first_difference(model, read, {old: again[new] for new, old in names.items()}):
        raise CheckpointError(f"a GGUF file of architecture {name!r} cannot hold this model: {found}")
    tensors = {stored: NewTensor(tuple(t.shape), partial(_plain, t)) for stored, t in rope_tensors.values()}
    head = model.head.linear.weight.sources[0].name
    for new, old in names.items():
        rows = partial(_rows, checkpoint, old, wanted[old], architecture, part_of(new), config)
        tensors[new] = NewTensor(wanted[old], rows, old == head)
    return Content(name, {key: typed(value) for key, value in metadata.items()}, tensors)


def _architecture(
    checkpoint: Checkpoint, wanted: Mapping[str, tuple[int, ...]]
) -> tuple[str, Architecture, dict[str, str]]:
    """llama.cpp's name, and the model's tensors by their names there."""
    model_type = checkpoint.config.get("model_type")
    known = sorted({of.model_type for of in ARCHITECTURES.values()})
    problem = f"model_type: expected one with an architecture of GGUF ({', '.join(known)}), got {model_type!r:.80}"
    for name, architecture in reversed(architectures_for(model_type)):
        names = {own: stored_name(architecture, own) for own in wanted}
        if (nameless := next((own for own, stored in names.items() if stored is None), None)) is None:
            return name, architecture, {str(stored): own for own, stored in names.items()}
        problem = f"tensor {nameless}: the architecture {name!r} of GGUF has no place for it"
    raise CheckpointError(problem)


def _metadata(checkpoint: Checkpoint, model: Model, name: str, architecture: Architecture) -> dict[str, Any]:
    """Sizes of the model, and what its family says of its own in its config."""
    heads = checkpoint.config.get("attn_config")
    config = {**(heads if isinstance(heads, Mapping) else {}), **checkpoint.config}
    sizes = {key: value for key, value in _sizes(model).items() if key not in _OF_FAMILIES or key in architecture.keys}
    stated = {key: config.get(own) for key, own in architecture.keys.items()}
    # llama.cpp wants numbers that are no sizes as floats, which a config may well write without a point.
    values = {key: float(value) if type(value) is int else value for key, value in stated.items()} | sizes
    return {f"{name}.{key}": value for key, value in values.items() if value is not None}


# Keys that only the files of some families have.
_OF_FAMILIES = ("attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon", "rope.freq_base_swa")


def _sizes(model: Model) -> dict[str, Any]:
    """The keys of sizes, without the name of the architecture before them."""
    attention = _rotating(model)
    windows = [each.window for each in model.attentions if each.window >= 0]
    norm_eps = getattr(model.norm, "eps", None)
    sizes = {
        "vocab_size": model.vocab_size,
        "context_length": model.max_positions,
        "block_count": len(model.blocks),
        "embedding_length": model.embedding.weight.shape[1],
        "feed_forward_length": next(model.walk(Mlp)).down.weight.shape[1],
        "attention.head_count": attention.num_heads,
        "attention.head_count_kv": attention.num_kv_heads,
        "attention.key_length": attention.head_dim,
        "attention.value_length": attention.head_dim,
        "attention.sliding_window": max(windows) + 1 if windows else None,
        "attention.layer_norm_rms_epsilon": norm_eps,
        "attention.layer_norm_epsilon": norm_eps,
        "rope.freq_base_swa": next((each.rotary.config.theta for each in model.attentions if each.window >= 0), None),
    }
    return sizes | (_rotation(attention.rotary.config, attention.rotary.head_dim) if attention.rotary.head_dim else {})


def _rotating(model: Model) -> Attention:
    """An attention that sees everything and rotates, where there is one."""
    return max(model.attentions, key=lambda each: (each.rotary.head_dim > 0, each.window < 0))


def _rotation(rope: RopeConfig, rotated: int) -> dict[str, Any]:
    values = {"rope.freq_base": float(rope.theta), "rope.dimension_count": rotated}
    return values | {f"rope.scaling.{key}": value for key, value in _scaling(rope).items()}


def _scaling(rope: RopeConfig) -> dict[str, Any]:
    scaling = rope.scaling
    if isinstance(scaling, YarnScaling):
        return {
            "type": "yarn",
            "factor": float(scaling.factor),
            "original_context_length": scaling.original_max_positions,
            "yarn_beta_fast": float(scaling.beta_fast),
            "yarn_beta_slow": float(scaling.beta_slow),
            "attn_factor": rope.attention_factor / yarn_magnitude(scaling.factor),
        }
    if isinstance(scaling, LongRopeScaling):
        original = scaling.original_max_positions
        return {"type": "longrope", "original_context_length": original, "attn_factor": float(rope.attention_factor)}
    return {"type": "linear", "factor": float(rope.linear_factor)} if rope.linear_factor != 1 else {}


def _rope_tensors(model: Model) -> dict[str, tuple[str, Tensor]]:
    """What configs say in numbers and llama.cpp keeps as tensors: name and float32 values, by what they are."""
    rotary = _rotating(model).rotary
    scaling, plain = rotary.config.scaling, RopeConfig(rotary.config.theta, rotary.config.linear_factor)
    if isinstance(scaling, Llama3Scaling):
        divisors = inverse_frequencies(plain, rotary.head_dim) / inverse_frequencies(rotary.config, rotary.head_dim)
        return {"divisors": ("rope_freqs.weight", divisors[0])}
    if isinstance(scaling, LongRopeScaling):
        lists = {"short_factor": scaling.short_factors, "long_factor": scaling.long_factors}
        return {
            key: (
                f"rope_factors_{key.partition('_')[0]}.weight",
                torch.tensor(numbers, dtype=torch.float32, device="cpu"),
            )
            for key, numbers in lists.items()
        }
    return {}


def _plain(tensor: Tensor) -> np.ndarray:
    return tensor.view(1, -1).numpy()


def _rows(
    checkpoint: Checkpoint,
    name: str,
    shape: tuple[int, ...],
    architecture: Architecture,
    part: str,
    config: Mapping[str, Any],
) -> np.ndarray:
    """A tensor as llama.cpp's converter leaves it, float32 ``[rows, columns]``."""
    rows = torch.empty(shape, dtype=torch.float32, device="cpu")
    checkpoint.read_into(name, rows)
    checkpoint.release(name)
    if (reorder := reordering(architecture, part, config)) is not None:
        rows = _put_back(rows, reorder)
    if architecture.norm_offset and part.endswith("norm"):
        rows += 1
    return rows.view(-1, shape[-1]).numpy()


def _put_back(rows: Tensor, reorder: Callable[[Tensor], Tensor]) -> Tensor:
    """The rows before ``reorder``."""
    stored = torch.empty_like(rows)
    stored[reorder(torch.arange(len(rows), dtype=torch.int64, device="cpu"))] = rows
    return stored
