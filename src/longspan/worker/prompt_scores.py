"""Log-probabilities of a prompt's own tokens, wherever its chunks are computed.

Shapes: T rows of this instance, S rows that are scored, D hidden size, V vocabulary, N best tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from longspan.attention.layout import BatchLayout
from longspan.worker.messages import PromptScores, Scoring

_ROWS = 256  # at once: their logits are 50 to 150 MiB


def score_prompts(
    layout: BatchLayout, scoring: Mapping[str, Scoring], x_TD: Tensor, logits: Callable[[Tensor], Tensor]
) -> dict[str, PromptScores]:
    """Return the scores of what follows this instance's rows, by request.

    x_TD: the residual stream behind the last layer. logits: makes fp32 logits [S, V] of some of its rows; all
    tensor-parallel ranks call it alike.
    """
    found: dict[str, PromptScores] = {}
    for request_id, asked in scoring.items():
        next_ids = np.frombuffer(asked.next_ids, dtype="<i4").astype(np.int64)
        rows, positions, targets = [], [], []
        for part in layout.rows:
            if part.segment.request_id != request_id:
                continue
            places = np.arange(part.first, part.last + 1, part.step)
            known = places - part.segment.start < len(next_ids)
            rows.append(np.arange(part.start, part.stop)[known])
            positions.append(places[known] + 1)
            targets.append(next_ids[places[known] - part.segment.start])
        if rows and sum(map(len, rows)):
            rows_S, targets_S = (torch.from_numpy(np.concatenate(each)).to(x_TD.device) for each in (rows, targets))
            found[request_id] = _scores(rows_S, targets_S, np.concatenate(positions), asked.top, x_TD, logits)
    return found


def _scores(
    rows_S: Tensor, targets_S: Tensor, positions_S: np.ndarray, top: int, x_TD: Tensor,
    logits: Callable[[Tensor], Tensor],
) -> PromptScores:  # fmt: skip
    columns: list[list[np.ndarray]] = [[], [], [], []]
    for first in range(0, len(rows_S), _ROWS):
        logits_SV = logits(x_TD[rows_S[first : first + _ROWS]])
        chosen_S1 = logits_SV.gather(1, targets_S[first : first + _ROWS, None])
        logsumexp_S1 = logits_SV.logsumexp(-1, keepdim=True)
        best = logits_SV.topk(min(top, logits_SV.shape[1]))
        block = (
            (chosen_S1 - logsumexp_S1)[:, 0], ((logits_SV > chosen_S1).sum(-1) + 1).int(),
            best.indices.int(), best.values - logsumexp_S1,
        )  # fmt: skip
        for column, values in zip(columns, block, strict=True):
            column.append(values.cpu().numpy())
    logprobs, ranks, top_ids, top_logprobs = (np.concatenate(column).tobytes() for column in columns)
    return PromptScores(positions_S.astype("<i4").tobytes(), logprobs, ranks, top_ids, top_logprobs)
