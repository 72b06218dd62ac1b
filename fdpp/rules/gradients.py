"""The operators have no gradients: a call that wants one raises, in reverse mode, forward mode and torch.func.

torch would go on with a warning, and the gradient would be zero or none. torch asks here on every call outside of
``torch.inference_mode()``; within it, not at all.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.autograd import forward_ad

from fdpp.rules.arguments import by_name, registered_name


def register(library: torch.library.Library, op: OpOverload) -> None:
    """Refuse gradients of the operator; its calls without one go on to its kernels."""

    def refuse_gradients(keyset: Any, *args: Any, **kwargs: Any) -> Tensor:
        for name, value in by_name(op, args, kwargs).items():
            if isinstance(value, Tensor) and _wants_gradient(value):
                raise RuntimeError(
                    f"fdpp::{op._opname} has no gradient, and {name} wants one; call it under torch.no_grad() or "
                    f"torch.inference_mode(), or detach {name}"
                )
        with torch._C._AutoDispatchBelowAutograd():
            return op.redispatch(keyset & torch._C._after_autograd_keyset, *args, **kwargs)

    library.impl(registered_name(op), refuse_gradients, "Autograd", with_keyset=True)


def _wants_gradient(tensor: Tensor) -> bool:
    if tensor.requires_grad and torch.is_grad_enabled():
        return True
    return forward_ad.unpack_dual(tensor).tangent is not None
