"""MNIST: handwritten digits."""

from __future__ import annotations

from typing import ClassVar

from clsearch.data._idx import IdxSource


class MNIST(IdxSource):
    """60,000 training and 10,000 test images 28x28 of ten digits (LeCun et al. 1998).

    Mean and standard deviation are those of the training pixels over 255.
    """

    name: ClassVar[str] = "mnist"
    licence: ClassVar[str] = "CC BY-SA 3.0"
    dataset: ClassVar[str] = "MNIST"
    classes: ClassVar[tuple[str, ...]] = tuple("0123456789")
    mean: ClassVar[float] = 0.1307
    std: ClassVar[float] = 0.3081
