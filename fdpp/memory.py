"""The memory of a device."""

from __future__ import annotations

import os

import torch


def memory_bytes(device: torch.device) -> int:
    """The memory of the device in bytes, used or not."""
    if device.type == "cpu":
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return torch.get_device_module(device).mem_get_info(device)[1]
