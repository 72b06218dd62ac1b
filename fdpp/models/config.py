"""What the families of models have in common in their ``config.json``, as plain numbers that are checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fdpp._host import HEAD_DIMS
from fdpp.checks import check_flag, check_integer, check_number
from fdpp.errors import CheckpointError
from fdpp.models.rope import context_length, first, rope_config, rotary_dim
from fdpp.rope_config import RopeConfig

UNLIMITED = -1  # a window that hides nothing
_MAX_LAYERS = 4096
_MAX_TOKENS = 1 << 28
_ACTIVATIONS = {
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}

# No published model is near these bounds; beyond them a config is damaged or hostile.
_INTEGER_LIMITS = {
    "vocab_size": (1, 1 << 24),
    "hidden_size": (8, 1 << 18),
    "intermediate_size": (8, 1 << 20),
    "num_layers": (1, _MAX_LAYERS),
    "num_heads": (1, 4096),
    "num_kv_heads": (1, 4096),
    "max_positions": (1, _MAX_TOKENS),
}


@dataclass(frozen=True)
class ModelConfig:
    """The sizes of a model with grouped-query attention and rotary positions.

    Raises:
        CheckpointError: a value of the wrong type, out of its bounds, or at odds with another.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    norm_eps: float
    max_positions: int
    rope: RopeConfig
    rotary_dim: int
    tied_embeddings: bool

    @property
    def q_size(self) -> int:
        """Elements of all query heads."""
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Elements of all key heads, and of all value heads."""
        return self.num_kv_heads * self.head_dim

    def __post_init__(self) -> None:
        for name, (low, high) in _INTEGER_LIMITS.items():
            check_integer(name, getattr(self, name), low, high)
        if type(self.head_dim) is not int or self.head_dim not in HEAD_DIMS:
            raise CheckpointError(f"head_dim: expected one of {HEAD_DIMS}, got {self.head_dim!r:.80}")
        if self.num_heads % self.num_kv_heads:
            raise CheckpointError(
                f"num_heads: expected a multiple of num_kv_heads {self.num_kv_heads}, got {self.num_heads}"
            )
        check_number("norm_eps", self.norm_eps, 0.0, 1.0)


def read_config(config: Mapping[str, Any], **family_specific: Any) -> ModelConfig:
    """The sizes in a ``config.json``; ``family_specific`` overrides what the family says in another way."""
    rope = rope_config(config)
    head_dim = family_specific.get("head_dim", _head_dim(config))
    values: dict[str, Any] = {
        "vocab_size": config.get("vocab_size"),
        "hidden_size": config.get("hidden_size"),
        "intermediate_size": config.get("intermediate_size"),
        "num_layers": config.get("num_hidden_layers"),
        "num_heads": config.get("num_attention_heads"),
        "num_kv_heads": first(config.get("num_key_value_heads"), config.get("num_attention_heads")),
        "head_dim": head_dim,
        "norm_eps": config.get("rms_norm_eps", 1e-6),
        "max_positions": context_length(config, rope),
        "rope": rope,
        "rotary_dim": rotary_dim(config, head_dim) if type(head_dim) is int else None,  # ModelConfig reports it
        "tied_embeddings": flag(config, "tie_word_embeddings"),
    }
    return ModelConfig(**(values | family_specific))


def flag(config: Mapping[str, Any], key: str, default: bool = False) -> bool:
    """What stands under the key."""
    value = config.get(key, default)
    check_flag(key, value)
    return value


def activation(config: Mapping[str, Any], key: str, default: str) -> str:
    """The activation under the key, as :func:`fdpp.ops.linear` calls it."""
    name = config.get(key, default)
    if not isinstance(name, str) or name not in _ACTIVATIONS:
        raise CheckpointError(f"{key}: expected one of {sorted(_ACTIVATIONS)}, got {name!r:.80}")
    return _ACTIVATIONS[name]


def expect(config: Mapping[str, Any], **values: Any) -> None:
    """Refuse a config that says anything else than these values, which stand for what it leaves out, too."""
    for key, value in values.items():
        if (found := config.get(key, value)) != value:
            raise CheckpointError(f"{key}: expected {value!r}, got {found!r:.80}")


def number(config: Mapping[str, Any], key: str, default: float | None = None) -> float:
    """A number under the key that is not 0."""
    value = config.get(key, default)
    check_number(key, value, 1e-12, 1e6)
    return float(value)


def layer_count(config: Mapping[str, Any]) -> int:
    """``num_hidden_layers`` where it is usable as a length; :class:`ModelConfig` reports it where it is not."""
    count = config.get("num_hidden_layers")
    return count if type(count) is int and 0 <= count <= _MAX_LAYERS else 0


def sliding_window(config: Mapping[str, Any], default: int | None = 4096) -> int:
    """Hugging Face counts the keys that a query sees, itself included; the ops count those before it.

    Args:
        default: that of the family's config in transformers.
    """
    width = config.get("sliding_window", default)
    if width is None:
        return UNLIMITED
    check_integer("sliding_window", width, 1, _MAX_TOKENS)
    return width - 1


def layer_windows(config: Mapping[str, Any], window: int) -> list[int]:
    """``window`` in the layers that ``layer_types`` calls sliding, or in every layer where there is no such list."""
    kinds, count = config.get("layer_types"), layer_count(config)
    if kinds is None:
        return [window] * count
    windows = {"full_attention": UNLIMITED, "attention": UNLIMITED, "sliding_attention": window}
    if not isinstance(kinds, list) or not all(isinstance(kind, str) and kind in windows for kind in kinds):
        raise CheckpointError(f"layer_types: expected a list of {sorted(windows)}, got {kinds!r:.80}")
    if len(kinds) != count:
        raise CheckpointError(f"layer_types: expected {count} entries, got {len(kinds)}")
    if window == UNLIMITED and "sliding_attention" in kinds:
        raise CheckpointError("layer_types: 'sliding_attention' contradicts sliding_window, which is off")
    return [windows[kind] for kind in kinds]


def qwen_windows(config: Mapping[str, Any]) -> list[int]:
    """Windows with ``use_sliding_window`` only, in the layers that ``layer_types`` or ``max_window_layers`` name."""
    window = sliding_window(config) if config.get("use_sliding_window", False) else UNLIMITED
    if config.get("layer_types") is not None:
        return layer_windows(config, window)
    full = config.get("max_window_layers", 28)
    if type(full) is not int:
        raise CheckpointError(f"max_window_layers: expected an integer, got {full!r:.80}")
    return [window if i >= full else UNLIMITED for i in range(layer_count(config))]


def _head_dim(config: Mapping[str, Any]) -> Any:
    explicit, hidden, heads = (config.get(key) for key in ("head_dim", "hidden_size", "num_attention_heads"))
    if explicit is None and type(hidden) is int and type(heads) is int and heads > 0:
        return hidden // heads
    return explicit
