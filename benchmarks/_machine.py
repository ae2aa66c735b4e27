"""The machine a benchmark ran on, in one line."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch


def machine() -> str:
    """CPU model, cores, threads in use, Python, torch and, where there is one, the GPU."""
    cores = os.cpu_count()
    parts = [
        f"{_cpu()}, {cores} cores, {torch.get_num_threads()} thread(s) used",
        f"Python {platform.python_version()}",
        f"torch {torch.__version__} ({torch.backends.cpu.get_cpu_capability()})",
    ]
    if torch.cuda.is_available():
        parts.append(torch.cuda.get_device_name())
    return "; ".join(parts)


def _cpu() -> str:
    """The CPU's own name where the system tells it, with family and model on Linux."""
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return platform.processor() or platform.machine()
    lines = (line.partition(":") for line in path.read_text().splitlines() if ":" in line)
    fields = {key.strip(): value.strip() for key, _, value in lines}
    name = fields.get("model name") or platform.machine()
    family = fields.get("cpu family")
    return f"{name} (family {family}, model {fields.get('model')})" if family else name
