"""Root-mean-square normalisation.

Shape suffixes: T tokens, H heads, D the normalised dimension.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def rms_norm(x_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """Normalise, computed in fp32 and rounded once, to the weight's dtype.

    x may have more leading dimensions; the weight need only broadcast (one for each head, for instance).
    """
    return (F.rms_norm(x_TD.float(), (x_TD.shape[-1],), None, eps) * weight_D).to(weight_D.dtype)
