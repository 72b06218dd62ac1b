"""What is installed, what was built, what this machine has: the facts of ``fdpp info`` and of a useful bug report."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Callable
from pathlib import Path

MODELS_EXTRA = ("transformers", "tokenizers", "safetensors", "gguf", "huggingface_hub")


def collect() -> dict[str, dict[str, object]]:
    """The facts, by topic. A topic that cannot be had holds ``{"error": why}``; nothing is raised."""
    return {
        "versions": _versions(),
        "processor": _attempt(_processor),
        "gpus": _attempt(_gpus),
        "libraries": _attempt(_libraries),
        "dataflow tables": _attempt(_tables),
    }


def render(facts: dict[str, dict[str, object]]) -> str:
    """:func:`collect`'s facts as text: one block per topic, one line per fact."""
    blocks = []
    for topic, entries in facts.items():
        width = max((len(name) for name in entries), default=0)
        lines = [f"  {name:{width}s}  {_text(value)}" for name, value in entries.items()] or ["  none"]
        blocks.append("\n".join([topic, *lines]))
    return "\n\n".join(blocks)


def cpu_model() -> str:
    """The processor's name as the operating system tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _versions() -> dict[str, object]:
    names = ("fdpp", "torch", "numpy", *MODELS_EXTRA)
    return {"python": platform.python_version(), **{name: _version(name) for name in names}}


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed" + (" (fdpp[models])" if name in MODELS_EXTRA else "")


def _processor() -> dict[str, object]:
    import torch

    from fdpp import library

    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "model": cpu_model(),
        "cores": count,
        "torch threads": torch.get_num_threads(),
        **library.load().cpu_features(),
    }


def _gpus() -> dict[str, object]:
    import torch

    found: dict[str, object] = {}
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        architecture = getattr(gpu, "gcnArchName", f"{gpu.major}.{gpu.minor}")
        found[f"cuda:{index}"] = (
            f"{gpu.name}, architecture {architecture}, {gpu.multi_processor_count} multiprocessors, "
            f"{gpu.total_memory / 2**30:.0f} GiB"
        )
    return found


def _libraries() -> dict[str, object]:
    from fdpp import library
    from fdpp._host import build_info

    problem = library.load_gpu()
    return {**library.libraries(), **({"problem": problem} if problem else {}), **build_info()}


def _tables() -> dict[str, object]:
    import torch

    from fdpp import dataflow, library

    devices = {library.load().device_name()}
    if (vendor := library.gpu_vendor()) and library.is_loaded(vendor):
        devices |= {library.load(vendor).device_name(i) for i in range(torch.cuda.device_count())}
    found: dict[str, object] = {}
    for path, rows in dataflow.tables().items():
        mine = sum(row.device in devices for row in rows)
        found[str(path)] = f"{mine} of {len(rows)} rows for the devices of this machine"
    return found


def _attempt(topic: Callable[[], dict[str, object]]) -> dict[str, object]:
    try:
        return topic()
    except (ImportError, OSError, ValueError) as error:
        return {"error": str(error)}


def _text(value: object) -> str:
    if isinstance(value, (list, tuple, set)):
        return " ".join(str(item) for item in value)
    return str(value)
