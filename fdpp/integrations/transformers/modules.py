"""Modules that call the operators. A module becomes one by its class: parameters, hooks and names stay what they are.

Where the operators do not take what comes (another dtype or device, a gradient that is wanted), the forward of the
original class runs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.activations import SiLUActivation
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssRMSNorm
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm
from transformers.models.phi3.modeling_phi3 import Phi3MLP

from fdpp import ops
from fdpp.integrations.transformers.support import takes


class Accelerated:
    """Base of the forwards below, each of which stands before the original class in a class of its name."""

    original: ClassVar[type[nn.Module]]
    mixin: ClassVar[type[Accelerated]]

    def prepare(self) -> None:
        """What has to be done again when the parameters are others: after a copy, ``.to()`` and the like."""

    def undo(self) -> None:
        """Leave nothing of :meth:`prepare` behind."""

    def extra_repr(self) -> str:
        described = super().extra_repr()  # type: ignore[misc]
        return f"{described}, fdpp" if described else "fdpp"

    # Copies and pickles find the class by what it is made of, because no module has it under its name.
    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return _empty, (self.mixin, self.original), self.__dict__.copy()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[misc]
        self.prepare()

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        super()._apply(*args, **kwargs)  # type: ignore[misc]
        self.prepare()
        return self


_made: dict[tuple[type, type], Any] = {}


def accelerated_class(mixin: type[Accelerated], original: type[nn.Module]) -> Any:
    """``original`` with the forward of ``mixin``: of the same name and module, which transformers looks at."""
    if (mixin, original) not in _made:
        names = {"__module__": original.__module__, "__qualname__": original.__qualname__, "__doc__": original.__doc__}
        made = type(original.__name__, (mixin, original), {**names, "original": original, "mixin": mixin})
        _made[mixin, original] = made
    return _made[mixin, original]


def _empty(mixin: type[Accelerated], original: type[nn.Module]) -> nn.Module:
    made = accelerated_class(mixin, original)
    return made.__new__(made)


class Linear(Accelerated):
    """nn.Linear by :func:`fdpp.ops.linear`."""

    weight: nn.Parameter
    bias: nn.Parameter | None

    @staticmethod
    def fits(module: Any) -> bool:
        """Exactly nn.Linear, with a weight that is a plain tensor: not quantised, not shared among devices."""
        return type(module) is nn.Linear and type(module.weight.data) is Tensor

    def forward(self, input: Tensor) -> Tensor:
        """``[..., K]`` to ``[..., N]``."""
        weight, bias = self.weight, self.bias
        if takes(input, weight) if bias is None else takes(input, weight, bias):
            return ops.linear(input, weight, bias)
        return functional.linear(input, weight, bias)


class RmsNorm(Accelerated):
    """An RMS norm by :func:`fdpp.ops.rms_norm`."""

    weight: nn.Parameter
    variance_epsilon: float

    @staticmethod
    def fits(module: Any) -> bool:
        """A class that calculates what Llama's or gpt-oss's does: Gemma's, of ``1 + weight``, is another."""
        return _calculates(module, LlamaRMSNorm) or _calculates(module, GptOssRMSNorm)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """``[..., H]`` to ``[..., H]``."""
        if takes(hidden_states, self.weight):
            return ops.rms_norm(hidden_states, self.weight, self.variance_epsilon)
        return super().forward(hidden_states)  # type: ignore[misc]


class GatedMlp(Accelerated):
    """Llama's MLP with gate and up as one product. Their weights lie one after the other in one storage."""

    gate_proj: nn.Linear
    up_proj: nn.Linear
    down_proj: nn.Linear

    @staticmethod
    def fits(module: Any) -> bool:
        """A class that calculates what Llama's does, with SiLU, and two plain products without a bias."""
        return (
            _calculates(module, LlamaMLP)
            and type(module.act_fn) in (nn.SiLU, SiLUActivation)
            and _is_plain(module.gate_proj)
            and _is_plain(module.up_proj)
        )

    def prepare(self) -> None:
        gate, up = self.gate_proj.weight, self.up_proj.weight
        if gate.device.type != "meta" and (gate.dtype, gate.device) == (up.dtype, up.device):
            merged = torch.cat((gate.data, up.data))
            gate.data, up.data = merged[: gate.shape[0]], merged[gate.shape[0] :]

    def undo(self) -> None:
        for part in (self.gate_proj, self.up_proj):
            part.weight.data = part.weight.data.clone()

    def forward(self, x: Tensor) -> Tensor:
        """``[..., H]`` to ``[..., H]``."""
        gate, up = self.gate_proj, self.up_proj
        # A compiler neither reads addresses nor needs it: it merges by itself what is worth it.
        if torch.compiler.is_compiling() or not (
            _is_plain(gate) and _is_plain(up) and _follows(gate.weight, up.weight)
        ):
            return super().forward(x)  # type: ignore[misc]
        if not takes(x, gate.weight, up.weight):
            return super().forward(x)  # type: ignore[misc]
        rows = gate.weight.shape[0] + up.weight.shape[0]
        merged = gate.weight.detach().as_strided((rows, gate.weight.shape[1]), gate.weight.stride())
        return self.down_proj(ops.silu_mul(ops.linear(x, merged)))


class FusedMlp(Accelerated):
    """Phi-3's MLP, whose weight of gate and up is one already."""

    gate_up_proj: nn.Module
    down_proj: nn.Module

    @staticmethod
    def fits(module: Any) -> bool:
        """A class that calculates what Phi-3's does, with SiLU."""
        return _calculates(module, Phi3MLP) and type(module.activation_fn) in (nn.SiLU, SiLUActivation)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """``[..., H]`` to ``[..., H]``."""
        merged = self.gate_up_proj(hidden_states)
        if not takes(merged):
            halves = merged.chunk(2, dim=-1)
            return self.down_proj(functional.silu(halves[0]) * halves[1])
        return self.down_proj(ops.silu_mul(merged))


def _calculates(module: nn.Module, known: type[nn.Module]) -> bool:
    """Whether the forward of a module is that of a known class: families of transformers repeat it word by word."""
    forward = type(module).forward
    return _program(forward) is not None and _program(forward) == _program(known.forward)


def _program(function: Callable[..., Any]) -> tuple[Any, ...] | None:
    code = getattr(function, "__code__", None)
    if code is None:
        return None
    numbers = tuple(constant for constant in code.co_consts if not isinstance(constant, str))
    return code.co_code, code.co_names, code.co_varnames, numbers


def _is_plain(module: Any) -> bool:
    """Whether a product is its weight alone: no bias, and no hook or adapter that wants to see it happen."""
    return (
        type(module) in (nn.Linear, accelerated_class(Linear, nn.Linear))
        and type(module.weight.data) is Tensor
        and module.bias is None
        and not (module._forward_hooks or module._forward_pre_hooks or "forward" in module.__dict__)
    )


def _follows(first: Tensor, second: Tensor) -> bool:
    """Whether the rows of ``second`` lie right behind those of ``first`` in one storage."""
    return (
        first.untyped_storage().data_ptr() == second.untyped_storage().data_ptr()
        and second.storage_offset() == first.storage_offset() + first.numel()
        and first.stride() == second.stride()
    )
