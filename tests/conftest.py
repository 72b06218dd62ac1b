"""Settings of the whole suite."""

from __future__ import annotations

import os

# Threads that wait sleep instead of spinning: many times faster on a machine that is busy with other work.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch  # noqa: E402

torch.set_num_threads(min(2, os.cpu_count() or 1))
