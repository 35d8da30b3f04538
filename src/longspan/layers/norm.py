"""Root-mean-square normalisation.

Shape suffixes: T tokens, H heads, D the normalised dimension.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def rms_norm(x_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """As Hugging Face does it: computed in fp32, rounded to x's dtype, only then multiplied by the weight.

    x may have more leading dimensions; the weight need only broadcast (one for each head, for instance).
    """
    return F.rms_norm(x_TD, (x_TD.shape[-1],), None, eps) * weight_D
