"""A method whose trials break at their end, in the worker."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import ClassVar

from torch import Tensor

from clsearch.methods.base import Method, MethodOptions
from clsearch.models.base import Params


class Options(MethodOptions):
    fault: str
    marker: str = ""


class Faulty(Method):
    """Fine-tuning that raises, dies always, or dies once: until its marker is there."""

    name: ClassVar[str] = "faulty"
    Options: ClassVar[type[MethodOptions]] = Options

    def drift(self, params: Params, state: dict[str, Tensor]) -> float:
        if self.options.fault == "raise":
            raise RuntimeError("the sensor is unplugged")
        if self.options.fault == "always" or not Path(self.options.marker).exists():
            Path(self.options.marker).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return 0.0
