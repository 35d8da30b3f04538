"""Logits that tell near-equal tokens apart.

Shape suffixes: E rows, D hidden, V vocabulary, N (row, token) pairs.
"""

from __future__ import annotations

from torch import Tensor

# bf16 keeps 8 bits, so rounding moves a logit by up to 1/512 of itself; rounding the input moves it by less.
_DOUBT = 2.0**-6


def settle_near_ties_(logits_EV: Tensor, x_ED: Tensor, weight_VD: Tensor) -> Tensor:
    """Compute the logits within rounding distance of each row's best once more, in fp32 and in place.

    logits: x @ weight.T, multiplied in a short dtype and stored in fp32; x and weight as exact as they are known. In
    bf16 a logit of 20 lies on a grid of 1/8: several tokens share the best value, and the first would always win.
    """
    best_E1 = logits_EV.amax(dim=-1, keepdim=True)
    rows_N, tokens_N = (logits_EV >= best_E1 - _DOUBT * best_E1.abs()).nonzero(as_tuple=True)
    logits_EV[rows_N, tokens_N] = (x_ED[rows_N].float() * weight_VD[tokens_N].float()).sum(dim=-1)
    return logits_EV
