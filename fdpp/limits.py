"""Bounds on what a user may ask of a process."""

from __future__ import annotations

import os

MAX_THREADS = 4 * (os.cpu_count() or 1)  # far more than helps; a runtime that cannot start its threads ends the process
