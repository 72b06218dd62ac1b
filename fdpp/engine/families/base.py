"""What a model family is: a reading of ``config.json`` and the names of its weights. It adds no layer code."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fdpp.engine.config import UNLIMITED, DecoderConfig
from fdpp.engine.families.rope import context_length, first, rope_config
from fdpp.errors import CheckpointError


@dataclass(frozen=True)
class WeightNames:
    """Names without ``.weight`` or ``.bias``; ``{i}`` is the layer. The parts of a merged weight stand in order."""

    embedding: str = "model.embed_tokens"
    final_norm: str = "model.norm"
    lm_head: str = "lm_head"
    input_norm: str = "model.layers.{i}.input_layernorm"
    qkv: tuple[str, str, str] = (
        "model.layers.{i}.self_attn.q_proj",
        "model.layers.{i}.self_attn.k_proj",
        "model.layers.{i}.self_attn.v_proj",
    )
    q_norm: str = "model.layers.{i}.self_attn.q_norm"
    k_norm: str = "model.layers.{i}.self_attn.k_norm"
    o: str = "model.layers.{i}.self_attn.o_proj"
    post_norm: str = "model.layers.{i}.post_attention_layernorm"
    gate_up: tuple[str, str] = ("model.layers.{i}.mlp.gate_proj", "model.layers.{i}.mlp.up_proj")
    down: str = "model.layers.{i}.mlp.down_proj"


@dataclass(frozen=True)
class Family:
    """One family.

    Attributes:
        name: what the classes of transformers begin with: ``Llama`` for ``LlamaForCausalLM`` and ``LlamaModel``.
        model_type: ``model_type`` there, and ``general.architecture`` in a GGUF file.
        read_config: from the content of ``config.json`` to a :class:`DecoderConfig`.
        weight_names: the names of the weights in a Hugging Face checkpoint.
        gguf_rope_permuted: whether GGUF files hold the rows of q and k in the order of interleaved rotary pairs.
    """

    name: str
    model_type: str
    read_config: Callable[[Mapping[str, Any]], DecoderConfig]
    weight_names: WeightNames = WeightNames()
    gguf_rope_permuted: bool = False


def decoder_config(config: Mapping[str, Any], **family_specific: Any) -> DecoderConfig:
    """A :class:`DecoderConfig` from the keys that all families share; ``family_specific`` completes or overrides it."""
    if (activation := config.get("hidden_act", "silu")) != "silu":
        raise CheckpointError(f"hidden_act: expected 'silu', got {activation!r:.80}")
    num_layers, rope = config.get("num_hidden_layers"), rope_config(config)
    values: dict[str, Any] = {
        "vocab_size": config.get("vocab_size"),
        "hidden_size": config.get("hidden_size"),
        "intermediate_size": config.get("intermediate_size"),
        "num_layers": num_layers,
        "num_heads": config.get("num_attention_heads"),
        "num_kv_heads": first(config.get("num_key_value_heads"), config.get("num_attention_heads")),
        "head_dim": _head_dim(config),
        "norm_eps": config.get("rms_norm_eps", 1e-6),
        "max_positions": context_length(config, rope),
        "rope": rope,
        "windows": every_layer(config, UNLIMITED),
        "qkv_bias": False,
        "o_bias": False,
        "mlp_bias": False,
        "qk_norm": False,
        "tied_embeddings": config.get("tie_word_embeddings", False),
    }
    return DecoderConfig(**(values | family_specific))


def every_layer(config: Mapping[str, Any], window: int) -> tuple[int, ...]:
    """The same window for each layer."""
    return (window,) * layer_count(config)


def layer_count(config: Mapping[str, Any]) -> int:
    """``num_hidden_layers`` where it is usable as a length; :class:`DecoderConfig` reports it where it is not."""
    count = config.get("num_hidden_layers")
    return count if type(count) is int and 0 <= count <= 4096 else 0


def sliding_window(config: Mapping[str, Any]) -> int:
    """Hugging Face counts the keys that a query sees, itself included; the ops count those before it."""
    width = config.get("sliding_window", 4096)  # the default of the Hugging Face configs that have one
    if width is None:
        return UNLIMITED
    if type(width) is not int or width < 1:
        raise CheckpointError(f"sliding_window: expected a positive integer or null, got {width!r:.80}")
    return width - 1


def layer_windows(config: Mapping[str, Any], window: int) -> tuple[int, ...]:
    """``window`` in the layers that ``layer_types`` calls sliding, or in every layer where there is no such list."""
    kinds = config.get("layer_types")
    if kinds is None:
        return every_layer(config, window)
    windows = {"full_attention": UNLIMITED, "attention": UNLIMITED, "sliding_attention": window}
    if not isinstance(kinds, list) or not all(isinstance(kind, str) and kind in windows for kind in kinds):
        raise CheckpointError(f"layer_types: expected a list of {sorted(windows)}, got {kinds!r:.80}")
    if window == UNLIMITED and "sliding_attention" in kinds:
        raise CheckpointError("layer_types: 'sliding_attention' contradicts sliding_window, which is off")
    return tuple(windows[kind] for kind in kinds)


def qwen_windows(config: Mapping[str, Any]) -> tuple[int, ...]:
    """Windows with ``use_sliding_window`` only, in the layers that ``layer_types`` or ``max_window_layers`` name."""
    window = sliding_window(config) if config.get("use_sliding_window", False) else UNLIMITED
    if config.get("layer_types") is not None:
        return layer_windows(config, window)
    full = config.get("max_window_layers", 28)
    if type(full) is not int:
        raise CheckpointError(f"max_window_layers: expected an integer, got {full!r:.80}")
    return tuple(window if i >= full else UNLIMITED for i in range(layer_count(config)))


def _head_dim(config: Mapping[str, Any]) -> Any:
    explicit, hidden, heads = (config.get(key) for key in ("head_dim", "hidden_size", "num_attention_heads"))
    if explicit is None and type(hidden) is int and type(heads) is int and heads > 0:
        return hidden // heads
    return explicit
