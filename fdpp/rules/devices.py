"""Calls that no backend takes: nothing but None, a device without kernels, a layout that is not strided."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from fdpp.rules.arguments import by_name, registered_name, tensors_of


def register(library: torch.library.Library, op: OpOverload) -> None:
    """Say what is wrong where torch would find no kernel; those of the backends go before this one."""

    def refuse(*args: Any, **kwargs: Any) -> Any:
        tensors = tensors_of(op, by_name(op, args, kwargs))
        name, tensor = next((item for item in tensors.items() if not _is_dense(item[1])), next(iter(tensors.items())))
        raise RuntimeError(
            f"fdpp::{op._opname}: {name} must be a dense, strided tensor on a device with kernels (`fdpp info` lists "
            f"them); got {str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}, {tensor.layout}, on "
            f"{tensor.device}"
        )

    library.impl(registered_name(op), refuse, "CompositeExplicitAutograd")


def _is_dense(tensor: Tensor) -> bool:
    return tensor.layout == torch.strided and not tensor.is_quantized
