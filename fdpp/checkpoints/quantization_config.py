"""From ``quantization_config`` in ``config.json`` to how the directory's matrices are stored."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from fdpp.checkpoints.integer_methods import Awq, Gptq, IntQuantized, PackQuantized
from fdpp.checkpoints.quantization_method import QuantizationMethod
from fdpp.checkpoints.scaled_methods import Fp8, Nvfp4
from fdpp.errors import CheckpointError

_Config = Mapping[str, Any]


def method_of(config: _Config) -> QuantizationMethod | None:
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


def _gptq(config: _Config) -> QuantizationMethod:
    bits = _choice(config, "bits", 4, 8)
    if bits == 8:
        _choice(config, "sym", True)
    key = "checkpoint_format" if "checkpoint_format" in config else "format"
    layout = _choice(config, key, "gptq", "gptq_v2") if key in config else "gptq"
    size = _group_size(config)
    return Gptq(bits, size, int(layout == "gptq"), config.get("desc_act") is True and size != -1)


def _awq(config: _Config) -> QuantizationMethod:
    _choice(config, "bits", 4)
    key = "version" if "version" in config else "format"
    if key in config:
        _choice(config, key, "gemm", "GEMM")
    return Awq(_group_size(config))


def _fp8(config: _Config) -> QuantizationMethod:
    _choice(config, "activation_scheme", None, "dynamic")
    _choice(config, "fmt", None, "e4m3")
    return Fp8(_block(config, "weight_block_size"), "weight_scale_inv")


def _compressed_tensors(config: _Config) -> QuantizationMethod:
    format = _choice(config, "format", *_GROUPS)
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
    for key, allowed in (("input_activations", format != "pack-quantized"), ("output_activations", False)):
        if group.get(key) is not None and not allowed:
            raise _unknown(f"{key} null", group[key])
    if group.get("format") is not None:
        _choice(group, "format", format)
    if not isinstance(weights := group.get("weights"), Mapping):
        raise _unknown("weights as a JSON object", weights)
    return _GROUPS[format](weights)


def _pack_quantized(weights: _Config) -> QuantizationMethod:
    bits, _ = _choice(weights, "num_bits", 4, 8), _choice(weights, "type", "int")
    symmetric = _choice(weights, "symmetric", *((True, False) if bits == 4 else (True,)))
    strategy = _choice(weights, "strategy", "group", "channel")
    order = _choice(weights, "actorder", None, False, True, "group", "dynamic", "weight", "static")
    size = _group_size(weights) if strategy == "group" else -1
    return PackQuantized(bits, size, not symmetric, order in (True, "group", "dynamic"))


def _int_quantized(weights: _Config) -> QuantizationMethod:
    _expect(weights, num_bits=8, type="int", symmetric=True)
    return IntQuantized(_choice(weights, "strategy", "channel", "tensor") == "channel")


def _float_quantized(weights: _Config) -> QuantizationMethod:
    _expect(weights, num_bits=8, type="float", symmetric=True)
    strategy = _choice(weights, "strategy", "channel", "tensor", "block")
    blocks = {"channel": (1, -1), "tensor": (-1, -1)}
    return Fp8(blocks.get(strategy) or _block(weights, "block_structure"), "weight_scale")


def _naive_quantized(weights: _Config) -> QuantizationMethod:
    is_integer = _choice(weights, "type", "int", "float") == "int"
    return _int_quantized(weights) if is_integer else _float_quantized(weights)


def _nvfp4(weights: _Config) -> QuantizationMethod:
    _expect(weights, num_bits=4, type="float", symmetric=True, strategy="tensor_group", group_size=16)
    return Nvfp4()


_GROUPS: dict[str, Callable[[_Config], QuantizationMethod]] = {
    "float-quantized": _float_quantized,
    "int-quantized": _int_quantized,
    "naive-quantized": _naive_quantized,
    "nvfp4-pack-quantized": _nvfp4,
    "pack-quantized": _pack_quantized,
}
_METHODS: dict[str, Callable[[_Config], QuantizationMethod]] = {
    "awq": _awq,
    "compressed-tensors": _compressed_tensors,
    "fp8": _fp8,
    "gptq": _gptq,
}


def _choice(config: _Config, key: str, *choices: Any) -> Any:
    value = config.get(key)
    if not any(type(value) is type(choice) and value == choice for choice in choices):
        raise _unknown(f"{key} {' or '.join(map(repr, choices))}", value)
    return value


def _expect(config: _Config, **values: Any) -> None:
    for key, value in values.items():
        _choice(config, key, value)


def _group_size(config: _Config) -> int:
    size = config.get("group_size")
    if type(size) is not int or (size != -1 and size < 1):
        raise _unknown("group_size -1 or at least 1", size)
    return size


def _block(config: _Config, key: str) -> tuple[int, int]:
    """Rows and columns of what shares a scale."""
    found = config.get(key)
    if not isinstance(found, list) or len(found) != 2 or not all(type(n) is int and 1 <= n <= 1 << 20 for n in found):
        raise _unknown(f"{key} of two sizes", found)
    return found[0], found[1]


def _unknown(expected: str, came: object) -> CheckpointError:
    return CheckpointError(f"quantization_config of quantised weights: expected {expected}, got {came!r:.80}")
