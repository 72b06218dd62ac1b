"""Writes a small model of transformers as a directory with weights of 8 bits or NVFP4, by the definitions of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.engine.folder_writer import edit_config

E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


@dataclass(frozen=True)
class Scaled:
    """How matrices are quantised.

    Attributes:
        format: of compressed-tensors, or "fp8".
        strategy: "tensor", "channel" or "block"; of NVFP4 "tensor_group".
        block: the sizes of one.
        scales: their dtype.
        is_static: whether there are scales of activations.
    """

    format: str
    strategy: str
    block: tuple[int, int] = (128, 128)
    scales: torch.dtype = torch.bfloat16
    is_integer: bool = False
    is_static: bool = False

    def __str__(self) -> str:
        kind = ("-int" if self.is_integer else "") + ("-static" if self.is_static else "")
        return f"{self.format}-{self.strategy}-{str(self.scales).removeprefix('torch.')}{kind}"

    def config(self) -> dict[str, Any]:
        if self.format == "fp8":
            return {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": list(self.block)}
        is_nvfp4 = self.format.startswith("nvfp4")
        weights = {
            "num_bits": 4 if is_nvfp4 else 8,
            "type": "int" if self.is_integer else "float",
            "symmetric": True,
            "strategy": self.strategy,
            "group_size": 16 if is_nvfp4 else None,
            "block_structure": list(self.block) if self.strategy == "block" else None,
        }
        inputs = {"num_bits": weights["num_bits"], "dynamic": not self.is_static}
        group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs, "output_activations": None}
        return {"quant_method": "compressed-tensors", "format": self.format, "config_groups": {"group_0": group}}


def quantise(weight: Tensor, scheme: Scaled) -> tuple[dict[str, Tensor], Tensor]:
    """The parts of a module, and the values that they stand for, float32."""
    if scheme.format.startswith("nvfp4"):
        return _nvfp4(weight)
    rows, columns = weight.shape
    height, width = {"tensor": (rows, columns), "channel": (1, columns)}.get(scheme.strategy, scheme.block)
    top = 127 if scheme.is_integer else 448
    scales, values = (
        torch.empty(-(-rows // height), -(-columns // width), dtype=scheme.scales),
        torch.empty_like(weight),
    )
    codes = torch.empty(rows, columns, dtype=torch.int8 if scheme.is_integer else torch.float8_e4m3fn)
    for i in range(scales.shape[0]):
        for j in range(scales.shape[1]):
            own = slice(i * height, (i + 1) * height), slice(j * width, (j + 1) * width)
            scales[i, j] = weight[own].abs().max() / top * 1.01
            quotient = weight[own] / scales[i, j].float()
            codes[own] = (quotient.round() if scheme.is_integer else quotient).to(codes.dtype)
            values[own] = codes[own].float() * scales[i, j].float()
    name = "weight_scale_inv" if scheme.format == "fp8" else "weight_scale"
    parts = {"weight": codes, name: scales.flatten() if scheme.strategy == "tensor" else scales}
    return parts | ({"input_scale": torch.ones(1)} if scheme.is_static else {}), values


def _nvfp4(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    rows, columns = weight.shape
    whole = torch.tensor([448 * 6 / weight.abs().max()])
    groups = weight.view(rows, columns // 16, 16)
    scales = (groups.abs().amax(-1) / 6 * whole).to(torch.float8_e4m3fn)
    own = (scales.float() / whole)[..., None]
    codes = ((groups / own.clamp(min=1e-9))[..., None] - E2M1).abs().argmin(-1).view(rows, columns)
    values = (E2M1[codes].view_as(groups) * own).view(rows, columns)
    packed = (codes[:, ::2] + 16 * codes[:, 1::2]).to(torch.uint8)
    parts = {"weight_packed": packed, "weight_scale": scales, "weight_global_scale": whole}
    return parts | {"input_global_scale": torch.ones(1)}, values


def write_scaled_folder(
    path: Path, model: torch.nn.Module, scheme: Scaled, converted: Callable[[str], bool] = lambda name: True
) -> None:
    """Save the model with the matrices of its layers quantised. **Mutates** it: it gets the values of the directory."""
    tensors: dict[str, Tensor] = {}
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, torch.nn.Linear) and ".layers." in name and converted(name):
                parts, values = quantise(module.weight.detach(), scheme)
                module.weight.copy_(values)
                tensors |= {f"{name}.{part}": tensor for part, tensor in parts.items()}
    model.save_pretrained(path)
    weights = {name.rpartition(".")[0] + ".weight" for name in tensors}
    plain = load_file(path / "model.safetensors")
    tensors |= {name: tensor for name, tensor in plain.items() if name not in weights}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path / "model.safetensors")
    edit_config(path, {"quantization_config": scheme.config()})
