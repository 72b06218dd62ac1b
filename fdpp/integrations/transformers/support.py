"""What the operators take: decisions about tensors, which :mod:`fdpp.ops` would refuse with an error."""

from __future__ import annotations

import torch
from torch import Tensor

from fdpp import dtypes, library
from fdpp._host import HEAD_DIMS

MAX_NEW_TOKENS = 16  # of one sequence in a call of decode_attention


def _dtypes(device: str) -> tuple[torch.dtype, ...]:
    return tuple(getattr(torch, name) for name in dtypes.NAMES if device == "cpu" or name != "float32")


DTYPES = {"cpu": _dtypes("cpu")}
if library.gpu_vendor() is not None and library.load_gpu() is None:
    DTYPES["cuda"] = _dtypes("cuda")  # torch's name for AMD's GPUs, too


def wants_gradient(*tensors: Tensor) -> bool:
    """Whether torch has to record what is calculated from one of the tensors."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def takes(x: Tensor, *others: Tensor) -> bool:
    """Whether the operators take the tensors: one dtype that the device has, rows in one piece, no gradient."""
    return (
        x.dtype in DTYPES.get(x.device.type, ())
        and x.stride(-1) == 1
        and all(other.dtype is x.dtype and other.stride(-1) == 1 for other in others)
        and not wants_gradient(x, *others)
    )


def takes_heads(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether decode_attention takes ``[B, heads, tokens, D]`` of these shapes."""
    return (
        query.shape[-1] in HEAD_DIMS
        and key.shape == value.shape
        and key.shape[0] == query.shape[0]
        and key.shape[-1] == query.shape[-1]
        and query.shape[1] % key.shape[1] == 0
        and query.shape[2] <= MAX_NEW_TOKENS
    )
