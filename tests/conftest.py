"""Every test computes in one thread, as workers do: two beside other load come to a standstill."""

from __future__ import annotations

import torch

torch.set_num_threads(1)
