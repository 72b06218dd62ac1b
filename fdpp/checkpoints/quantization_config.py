"""From ``quantization_config`` in ``config.json`` to how the directory's matrices are stored."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from fdpp.checkpoints.integer_methods import Awq, Gptq, IntegerMethod, PackQuantized
from fdpp.errors import CheckpointError

_Config = Mapping[str, Any]


def method_of(config: _Config) -> IntegerMethod | None:
    """The method of a model's config; None where its weights are plain.

    Raises:
        CheckpointError: a method, or an option of one, that is not known.
    """
    if not (found := config.get("quantization_config")):
        return None
    if not isinstance(found, Mapping):
        raise _unknown("a JSON object", found)
    method = _choice(found, "quant_method", *_METHODS)
    return _METHODS[method](found)


def _gptq(config: _Config) -> IntegerMethod:
    bits = _choice(config, "bits", 4, 8)
    if bits == 8:
        _choice(config, "sym", True)
    key = "checkpoint_format" if "checkpoint_format" in config else "format"
    layout = _choice(config, key, "gptq", "gptq_v2") if key in config else "gptq"
    size = _group_size(config)
    return Gptq(bits, size, int(layout == "gptq"), config.get("desc_act") is True and size != -1)


def _awq(config: _Config) -> IntegerMethod:
    _choice(config, "bits", 4)
    key = "version" if "version" in config else "format"
    if key in config:
        _choice(config, key, "gemm", "GEMM")
    return Awq(_group_size(config))


def _compressed_tensors(config: _Config) -> IntegerMethod:
    _choice(config, "format", "pack-quantized")
    sparsity = config.get("sparsity_config")
    if sparsity and not (isinstance(sparsity, Mapping) and sparsity.get("format") == "dense"):
        raise _unknown("sparsity_config of format 'dense'", sparsity)
    # Rotations would have to be applied to activations, and a cache of few bits has scales of its own.
    for key in ("transform_config", "kv_cache_scheme"):
        if config.get(key) not in (None, {}, {"config_groups": {}}):
            raise _unknown(f"no {key}", config[key])
    groups = config.get("config_groups")
    if (
        not isinstance(groups, Mapping)
        or len(groups) != 1
        or not isinstance(group := next(iter(groups.values())), Mapping)
    ):
        raise _unknown("config_groups with one group", groups)
    return _group_of_modules(group)


def _group_of_modules(group: _Config) -> IntegerMethod:
    for key in ("input_activations", "output_activations"):
        if group.get(key) is not None:
            raise _unknown(f"{key} null", group[key])
    if group.get("format") is not None:
        _choice(group, "format", "pack-quantized")
    if not isinstance(weights := group.get("weights"), Mapping):
        raise _unknown("weights as a JSON object", weights)
    bits, _ = _choice(weights, "num_bits", 4, 8), _choice(weights, "type", "int")
    symmetric = _choice(weights, "symmetric", *((True, False) if bits == 4 else (True,)))
    strategy = _choice(weights, "strategy", "group", "channel")
    order = _choice(weights, "actorder", None, False, True, "group", "dynamic", "weight", "static")
    size = _group_size(weights) if strategy == "group" else -1
    return PackQuantized(bits, size, not symmetric, order in (True, "group", "dynamic"))


_METHODS: dict[str, Callable[[_Config], IntegerMethod]] = {
    "awq": _awq,
    "compressed-tensors": _compressed_tensors,
    "gptq": _gptq,
}


def _choice(config: _Config, key: str, *choices: Any) -> Any:
    value = config.get(key)
    if not any(type(value) is type(choice) and value == choice for choice in choices):
        raise _unknown(f"{key} {' or '.join(map(repr, choices))}", value)
    return value


def _group_size(config: _Config) -> int:
    size = config.get("group_size")
    if type(size) is not int or (size != -1 and size < 1):
        raise _unknown("group_size -1 or at least 1", size)
    return size


def _unknown(expected: str, came: object) -> CheckpointError:
    return CheckpointError(f"quantization_config of quantised weights: expected {expected}, got {came!r:.80}")
