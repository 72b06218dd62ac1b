"""What torch wants to know of an operator beside its kernels: one file per question, one call per namespace.

The operators' libraries are built without Python, so these rules are given here. None of them costs anything where
models are decoded: torch asks for gradients outside of ``torch.inference_mode()`` alone, and for the others inside
of ``torch.compile``, ``torch.autocast``, ``torch.vmap`` and ``FlopCounterMode``.
"""

from __future__ import annotations

import torch

from fdpp.rules import autocast, batching, devices, fakes, flops, gradients

_libraries: list[torch.library.Library] = []  # rules are in force as long as their library lives


def register(namespace: str, *, gpu: bool = False) -> None:
    """Give the operators of ``torch.ops.<namespace>`` all rules.

    Args:
        namespace: has the schemas of ``fdpp``.
        gpu: its kernels are those of a GPU on every device (the simulated machines of the tests).
    """
    library = torch.library.Library(namespace, "FRAGMENT")
    _libraries.append(library)
    for name in fakes.RESULTS:
        packet = getattr(getattr(torch.ops, namespace), name)
        flops.register(packet)
        for overload in packet.overloads():
            op = getattr(packet, overload)
            fakes.register(op, gpu)
            gradients.register(library, op)
            autocast.register(library, op)
            batching.register(library, op)
            devices.register(library, op)
