"""DeCov: decorrelates the neurons of a layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from clsearch.regularizers._activations import ActivationRegularizer, homogeneous, pack_product
from clsearch.regularizers.base import Hypers
from clsearch.space import Hyper


class DeCov(ActivationRegularizer):
    """`λ Σ_l ½ (‖C‖_F² − ‖diag C‖²)` (Cogswell et al. 2016, §3), λ `decov`.

    C is the covariance of a layer's neurons over the M samples of a batch, `1/M Σ_m (h_i^m − μ_i)
    (h_j^m − μ_j)`. Where there are fewer samples than neurons it is never formed: the M×M matrix
    of the samples' products says the same. In a convolutional layer the neurons are the channels
    and every position in space counts as a sample.
    """

    name: ClassVar[str] = "decov"
    space: ClassVar[dict[str, Hyper]] = {
        "decov": Hyper(1e-2, (0.0, 1e-3, 1e-2, 1e-1), "λ of the covariances between neurons.")
    }
    strength: ClassVar[str] = "decov"

    def of_layer(
        self, h: Tensor, layer: str, importance: Mapping[str, Tensor], hyper: Hypers
    ) -> Tensor:
        count, units = h.shape
        centred = h - h.detach().mean(0)
        x = centred.detach()
        # x C, then without the diagonal; the gradient's own mean over the samples is zero.
        gram = count < units
        mixed = (
            pack_product(pack_product(x, x), x.mT)
            if gram
            else pack_product(x, pack_product(x.mT, x.mT))
        )
        mixed = (mixed - x * x.square().sum(0)) / count
        return homogeneous(centred, mixed / (2 * count), 4)
