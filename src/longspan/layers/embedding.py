"""Token embedding, whole or one rank's vocabulary rows.

Shape suffixes: T tokens, V this rank's vocabulary rows, D hidden.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def embed(token_ids_T: Tensor, weight_VD: Tensor) -> Tensor:
    return F.embedding(token_ids_T, weight_VD)


def embed_share(token_ids_T: Tensor, weight_VD: Tensor, first_token: int) -> Tensor:
    """Return rows of the tokens that this rank holds, else zeros: the sum over the ranks is `embed`."""
    local_T = token_ids_T - first_token
    is_foreign_T = (local_T < 0) | (local_T >= weight_VD.shape[0])
    x_TD = F.embedding(local_T.masked_fill(is_foreign_T, 0), weight_VD)
    return x_TD.masked_fill_(is_foreign_T[:, None], 0)
