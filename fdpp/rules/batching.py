"""``torch.vmap``: torch's own loop for operators that return their result; those that write are refused."""

from __future__ import annotations

from typing import Any

import torch
from torch._ops import OpOverload

from fdpp.rules.arguments import is_mutable, registered_name


def register(library: torch.library.Library, op: OpOverload) -> None:
    """Refuse the operator where torch's loop cannot run it, and say what to do."""
    if not is_mutable(op):
        return
    written = ", ".join(argument.name for argument in op._schema.arguments if argument.is_write)

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError(
            f"fdpp::{op._opname} has no rule for vmap, because it writes {written}; "
            "call it without vmap, the batch as a leading dimension"
        )

    library.impl(registered_name(op), refuse, "FuncTorchBatched")
