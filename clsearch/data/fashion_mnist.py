"""Fashion-MNIST: clothing in the format of MNIST."""

from __future__ import annotations

from typing import ClassVar

from clsearch.data._idx import IdxSource


class FashionMNIST(IdxSource):
    """60,000 training and 10,000 test images 28x28 of ten garments (Xiao et al. 2017).

    Mean and standard deviation are those of the training pixels over 255.
    """

    name: ClassVar[str] = "fashion_mnist"
    licence: ClassVar[str] = "MIT"
    dataset: ClassVar[str] = "FashionMNIST"
    classes: ClassVar[tuple[str, ...]] = (
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    )
    mean: ClassVar[float] = 0.2860
    std: ClassVar[float] = 0.3530
