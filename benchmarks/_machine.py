"""The machine a benchmark ran on, in one line."""

from __future__ import annotations

import os
import platform

import torch

from clsearch.files import processor


def machine() -> str:
    """CPU model, cores, threads in use, Python, torch and, where there is one, the GPU."""
    cores = os.cpu_count()
    parts = [
        f"{processor()}, {cores} cores, {torch.get_num_threads()} thread(s) used",
        f"Python {platform.python_version()}",
        f"torch {torch.__version__} ({torch.backends.cpu.get_cpu_capability()})",
    ]
    if torch.cuda.is_available():
        parts.append(torch.cuda.get_device_name())
    return "; ".join(parts)
