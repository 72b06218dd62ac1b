"""Writes a small model of transformers as a directory with integer weights, by the definitions of each method."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fdpp.llm import LLM

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


@dataclass(frozen=True)
class Scheme:
    """How matrices are quantised. ``act_order``: from the name of a module to the seed of its order; None for none."""

    method: str  # "gptq", "gptq_v2", "awq" or "pack-quantized"
    group_size: int = 128
    bits: int = 4
    symmetric: bool = True
    scales: torch.dtype = torch.float16
    act_order: Callable[[str], int] | None = None

    def __str__(self) -> str:
        kind = "symmetric" if self.symmetric else "asymmetric"
        order = "-act-order" if self.act_order else ""
        return f"{self.method}-{self.bits}-{self.group_size}-{kind}-{str(self.scales).removeprefix('torch.')}{order}"

    def config(self) -> dict[str, Any]:
        """The value of ``quantization_config``."""
        common = {"bits": self.bits, "group_size": self.group_size}
        if self.method == "awq":
            return common | {"quant_method": "awq", "version": "gemm", "zero_point": not self.symmetric}
        if self.method.startswith("gptq"):
            return common | {
                "quant_method": "gptq",
                "checkpoint_format": self.method,
                "desc_act": self.act_order is not None,
                "sym": self.symmetric,
            }
        weights = {
            "num_bits": self.bits,
            "type": "int",
            "symmetric": self.symmetric,
            "strategy": "channel" if self.group_size == -1 else "group",
            "group_size": None if self.group_size == -1 else self.group_size,
            "actorder": "group" if self.act_order else None,
            "dynamic": False,
        }
        group = {"targets": ["Linear"], "weights": weights, "input_activations": None, "output_activations": None}
        return {
            "quant_method": "compressed-tensors",
            "format": self.method,
            "config_groups": {"group_0": group},
            "ignore": ["lm_head"],
            "kv_cache_scheme": None,
        }


@dataclass(frozen=True)
class Integers:
    """Codes ``[N, K]`` and zeros ``[N, G]``, int64 from 0 on; scales ``[N, G]``; the group of each column ``[K]``."""

    codes: Tensor
    zeros: Tensor
    scales: Tensor
    groups: Tensor

    def values(self) -> Tensor:
        return self.scales.float()[:, self.groups] * (self.codes - self.zeros[:, self.groups]).float()


def quantise(weight: Tensor, scheme: Scheme, name: str) -> Integers:
    rows, columns = weight.shape
    size = columns if scheme.group_size == -1 else scheme.group_size
    groups, top = torch.arange(columns) // size, 2**scheme.bits - 1
    if scheme.act_order is not None:
        groups = groups[torch.randperm(columns, generator=torch.Generator().manual_seed(scheme.act_order(name)))]
    zeros = torch.empty(rows, columns // size, dtype=torch.int64)
    scales = torch.empty(rows, columns // size, dtype=scheme.scales)
    for group in range(columns // size):
        own = weight[:, groups == group]
        if scheme.symmetric:
            scales[:, group] = own.abs().amax(1) / (top / 2)
            zeros[:, group] = 2 ** (scheme.bits - 1)
        else:
            scales[:, group] = (own.amax(1) - own.amin(1)) / top
            zeros[:, group] = (-own.amin(1) / scales[:, group].float()).round().clamp(1, top)
    if not scheme.symmetric and scheme.method == "gptq":
        zeros[::5] = 16  # which is stored as 15
    codes = (weight / scales.float()[:, groups]).round().long() + zeros[:, groups]
    return Integers(codes.clamp(0, top), zeros, scales, groups)


def words(codes: Tensor, bits: int, order: tuple[int, ...] = tuple(range(8))) -> Tensor:
    """int32 ``[R, ceil(C bits / 32)]`` of ``[R, C]``: field i of a word is number ``order[i]`` of its codes."""
    each = 32 // bits
    padded = np.zeros((codes.shape[0], -(-codes.shape[1] // each) * each), np.uint32)
    padded[:, : codes.shape[1]] = codes.numpy()
    found = np.zeros((len(padded), padded.shape[1] // each), np.uint32)
    for field in range(each):
        found |= padded[:, order[field] :: each] << np.uint32(bits * field)
    return torch.from_numpy(found.view(np.int32))


def parts(of: Integers, scheme: Scheme) -> dict[str, Tensor]:
    """The tensors of a module."""
    bits = scheme.bits
    if scheme.method == "awq":
        qweight, qzeros = (words(each.T, bits, AWQ_ORDER) for each in (of.codes, of.zeros))
        return {"qweight": qweight, "qzeros": qzeros, "scales": of.scales.T}
    if scheme.method.startswith("gptq"):
        stored = of.zeros - 1 if scheme.method == "gptq" else of.zeros
        found = {"qweight": words(of.codes, bits).T, "qzeros": words(stored.T, bits), "scales": of.scales.T}
        return found | {"g_idx": of.groups.int()}
    found = {"weight_packed": words(of.codes, bits), "weight_scale": of.scales}
    found["weight_shape"] = torch.tensor(of.codes.shape)
    if not scheme.symmetric:
        found["weight_zero_point"] = words(of.zeros.T, bits).T
    return found | ({"weight_g_idx": of.groups.int()} if scheme.act_order else {})


def write_folder(
    path: Path, model: torch.nn.Module, scheme: Scheme, converted: Callable[[str], bool] = lambda name: True
) -> None:
    """Save the model with the matrices of its layers quantised. **Mutates** it: it gets the values of the directory."""
    tensors: dict[str, Tensor] = {}
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, torch.nn.Linear) and ".layers." in name and converted(name):
                integers = quantise(module.weight, scheme, name)
                module.weight.copy_(integers.values())
                tensors |= {f"{name}.{part}": tensor for part, tensor in parts(integers, scheme).items()}
    model.save_pretrained(path)
    weights = {name.rpartition(".")[0] + ".weight" for name in tensors}
    plain = load_file(path / "model.safetensors")
    tensors |= {name: tensor for name, tensor in plain.items() if name not in weights}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path / "model.safetensors")
    edit_config(path, {"quantization_config": scheme.config()})


def edit_config(path: Path, changes: dict[str, Any]) -> None:
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | changes))


INPUTS = (("qkv_proj", "q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_up_proj", "gate_proj", "up_proj"))


def input_of(name: str) -> int:
    """What has the same input has the same order, as where that follows the activations."""
    return next((i for i, modules in enumerate(INPUTS) if name.endswith(modules)), len(INPUTS))


def layouts(llm: LLM) -> dict[str, str | None]:
    """Of the matrices, by the name of their first tensor in the first layer or outside of layers."""
    found = {w.sources[0].name: w for w in llm.model.weights() if w.is_matrix}
    return {
        name.removeprefix("model.").removeprefix("layers.0."): w.packing and w.packing.layout
        for name, w in found.items()
        if "layers" not in name or "layers.0." in name
    }
