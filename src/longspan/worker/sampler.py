"""From logits to tokens: grammar, biases, penalties, temperature, min-p, top-k, top-p, choice, in vLLM's order.

All tensor-parallel ranks of an instance sample for themselves and must agree, so nothing may depend on the
order in which a device adds floats. Probabilities are therefore scaled to whole numbers, the *weights*, whose
sums are exact in any order. Each filter is a floor: weights below it become 0, so equals stay or go together.
The token is found by inverting the cumulated weights at one random number for each row.

Shapes: E rows that emit a token, R some of those rows, V vocabulary, K best candidates, N (row, token) pairs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from longspan.sampling_params import SamplingParams
from longspan.worker.sampling_state import SampledLogprobs, SampledToken, SamplingState

# The most probable token weighs this much: 2**40 times 2**20 tokens still fits in 63 bits, and tokens that
# are 2**40 times less probable than the best one are never drawn.
_MAX_WEIGHT = 2.0**40
# e to this power is nothing, times that weight; of what is less a CPU takes ten times as long to say so.
_LEAST_EXPONENT = -80.0
_MIN_TEMPERATURE = 1e-5
# A nucleus (top-p) is sought among so many best tokens first; a wider one costs another round.
_NUCLEUS_SIZE = 256
_NUCLEUS_GROWTH = 16
# On a CPU rows are sampled in blocks of so many logits: what fits its cache is several times faster.
_CPU_BLOCK = 1 << 19
_ANY: Mapping[int, NDArray[np.bool_]] = {}


class Sampler:
    """Chooses the next token of each row."""

    @torch.inference_mode()
    def sample(
        self, logits_EV: Tensor, states: Sequence[SamplingState], allowed: Mapping[int, NDArray[np.bool_]] = _ANY
    ) -> list[SampledToken | None]:
        """Sample one token for each row; changes neither the logits (fp32) nor the states.

        allowed: of some rows, which tokens may be chosen, [V]. Log-probabilities are those without it.

        None where a row has no finite greatest logit (one is NaN or infinite, or all are minus infinity): no token
        follows from it. The same states and logits give the same tokens, whatever the other rows are.
        """
        if not allowed and all(state.is_plain for state in states):
            largest_E, tokens_E = logits_EV.max(-1)  # faster than argmax, and likewise the first of equals
            return _unless_infinite(largest_E, [SampledToken(token) for token in tokens_E.tolist()])
        num_rows, vocab = logits_EV.shape
        block = max(1, _CPU_BLOCK // vocab) if logits_EV.device.type == "cpu" else num_rows
        return [
            token
            for start in range(0, num_rows, block)
            for token in _sample_block(
                logits_EV[start : start + block],
                states[start : start + block],
                {row - start: mask for row, mask in allowed.items() if start <= row < start + block},
            )
        ]


def _sample_block(
    logits_EV: Tensor, states: Sequence[SamplingState], allowed: Mapping[int, NDArray[np.bool_]]
) -> list[SampledToken | None]:
    possible_EV = _without_end(_restrict(logits_EV, allowed), states, allowed)
    largest_E, tokens_E = _choose(_penalize(_biased(possible_EV, states), states), states)
    logprobs = _logprobs(logits_EV, tokens_E, states)
    tokens = [SampledToken(token, logprobs.get(row)) for row, token in enumerate(tokens_E.tolist())]
    return _unless_infinite(largest_E, tokens)


def _unless_infinite(largest_E: Tensor, tokens: list[SampledToken]) -> list[SampledToken | None]:
    """NaN among a row's logits is the greatest of them."""
    finite = largest_E.isfinite().tolist()
    return [token if ok else None for token, ok in zip(tokens, finite, strict=True)]


def _restrict(logits_EV: Tensor, allowed: Mapping[int, NDArray[np.bool_]]) -> Tensor:
    """What is not allowed becomes minus infinity. Copies, if need be."""
    if not allowed:
        return logits_EV
    rows = list(allowed)
    allowed_RV = torch.from_numpy(np.stack([allowed[row] for row in rows])).to(logits_EV.device)
    if rows == list(range(len(logits_EV))):
        return torch.where(allowed_RV, logits_EV, -torch.inf)
    restricted_RV = torch.where(allowed_RV, logits_EV[rows], -torch.inf)
    return logits_EV.index_copy(0, torch.tensor(rows, device=logits_EV.device), restricted_RV)


def _without_end(
    logits_EV: Tensor, states: Sequence[SamplingState], allowed: Mapping[int, NDArray[np.bool_]]
) -> Tensor:
    """Where an output is too short to end, what would end it becomes minus infinity, unless nothing else is allowed."""
    pairs = [
        (row, token)
        for row, state in enumerate(states)
        if (ends := [token for token in state.may_not_end if token < logits_EV.shape[1]])
        and (row not in allowed or allowed[row].sum() > allowed[row][ends].sum())
        for token in ends
    ]
    if not pairs:
        return logits_EV
    rows_N, tokens_N = torch.tensor(pairs, device=logits_EV.device).unbind(1)
    return logits_EV.index_put((rows_N, tokens_N), logits_EV.new_tensor(-torch.inf))


def _biased(logits_EV: Tensor, states: Sequence[SamplingState]) -> Tensor:
    """Copies, if need be."""
    biases = [(row, *pair) for row, state in enumerate(states) for pair in state.params.logit_bias]
    if not biases:
        return logits_EV
    rows, tokens, added = zip(*biases, strict=True)
    rows_N, tokens_N = torch.tensor([rows, tokens], device=logits_EV.device)
    added_N = torch.tensor(added, dtype=logits_EV.dtype, device=logits_EV.device)
    return logits_EV.index_put((rows_N, tokens_N), added_N, accumulate=True)


def _penalize(logits_EV: Tensor, states: Sequence[SamplingState]) -> Tensor:
    """Repetition divides (below zero: multiplies), frequency and presence subtract. Copies, if need be."""
    counts = [state.token_counts for state in states]
    if not any(counts):
        return logits_EV
    rows = np.repeat(np.arange(len(states)), [len(of_row) for of_row in counts])
    tokens = np.fromiter(chain.from_iterable(counts), np.int64)
    times = np.fromiter(chain.from_iterable(of_row.values() for of_row in counts), np.int64)
    rows_N, tokens_N, counts_N = torch.from_numpy(np.stack([rows, tokens, times])).to(logits_EV.device)
    penalties = [
        [state.params.repetition_penalty for state in states],
        [state.params.frequency_penalty for state in states],
        [state.params.presence_penalty for state in states],
    ]
    repetition_N, frequency_N, presence_N = torch.tensor(penalties, device=logits_EV.device)[:, rows_N]

    logits_N = logits_EV[rows_N, tokens_N]
    logits_N = torch.where(logits_N > 0, logits_N / repetition_N, logits_N * repetition_N)
    logits_N -= frequency_N * counts_N + presence_N * (counts_N > 0)
    return logits_EV.index_put((rows_N, tokens_N), logits_N)


def _choose(logits_EV: Tensor, states: Sequence[SamplingState]) -> tuple[Tensor, Tensor]:
    """The greatest logit of each row, and its token."""
    random_rows = [row for row, state in enumerate(states) if not state.params.greedy]
    if len(random_rows) == len(states):
        largest_E = logits_EV.amax(-1)
        return largest_E, _draw(logits_EV, largest_E, states)
    largest_E, tokens_E = logits_EV.max(-1)
    if random_rows:
        of_rows = [states[row] for row in random_rows]
        tokens_E[random_rows] = _draw(logits_EV[random_rows], largest_E[random_rows], of_rows)
    return largest_E, tokens_E


def _draw(logits_EV: Tensor, largest_E: Tensor, states: Sequence[SamplingState]) -> Tensor:
    """The token in whose share of the total weight the row's random number falls."""
    weight_EV = weights(logits_EV, largest_E, [state.params for state in states])
    cumulated_EV = weight_EV.cumsum(-1, dtype=torch.int64)
    uniform = [state.uniform() for state in states]
    uniform_E = torch.tensor(uniform, dtype=torch.float64, device=logits_EV.device)
    total_E = cumulated_EV[:, -1]
    target_E = torch.minimum((uniform_E * total_E).long(), total_E - 1)
    tokens_E1 = torch.searchsorted(cumulated_EV, target_E[:, None], right=True)
    return tokens_E1[:, 0].clamp(max=cumulated_EV.shape[1] - 1)  # in range even if logits were NaN


def weights(logits_EV: Tensor, largest_E: Tensor, params: Sequence[SamplingParams]) -> Tensor:
    """Return whole numbers (as fp32) in proportion to the probabilities that temperature and filters leave.

    largest_E: the greatest logit of each row.
    """
    numbers = [[p.temperature for p in params], [p.min_p for p in params], [p.top_p for p in params]]
    by_row_3E = torch.tensor(numbers, dtype=torch.float64, device=logits_EV.device)
    temperature_E, min_p_E, top_p_E = by_row_3E
    weight_EV = logits_EV - largest_E[:, None]
    weight_EV.div_(temperature_E.clamp(min=_MIN_TEMPERATURE).float()[:, None])
    weight_EV.clamp_(min=_LEAST_EXPONENT).exp_().mul_(_MAX_WEIGHT).trunc_()
    if any(p.min_p > 0 for p in params):
        _zero_below(weight_EV, (min_p_E * _MAX_WEIGHT).float())
    if rows := [row for row, p in enumerate(params) if 0 < p.top_k < weight_EV.shape[1]]:
        floor_R = _top_k_floor(_take(weight_EV, rows), [params[row].top_k for row in rows])
        _zero_below(weight_EV, floor_R, rows)
    if rows := [row for row, p in enumerate(params) if p.top_p < 1]:
        floor_R = _top_p_floor(_take(weight_EV, rows), _take(top_p_E, rows))
        _zero_below(weight_EV, floor_R, rows)
    return weight_EV


def _top_k_floor(weight_RV: Tensor, top_k: list[int]) -> Tensor:
    best_RK = weight_RV.topk(max(top_k)).values
    index_R1 = torch.tensor(top_k, device=weight_RV.device)[:, None] - 1
    return best_RK.gather(1, index_R1)[:, 0]


def _top_p_floor(weight_RV: Tensor, top_p_R: Tensor) -> Tensor:
    """The weight of the last token in the nucleus: the fewest best ones with top_p of the total weight."""
    vocab = weight_RV.shape[1]
    needed_R = top_p_R * weight_RV.sum(-1, dtype=torch.int64)
    floor_R = torch.zeros_like(weight_RV[:, 0])
    open_R = torch.arange(len(weight_RV), device=weight_RV.device)  # rows whose nucleus is not known yet
    size = _NUCLEUS_SIZE
    while True:
        best_RK = _take(weight_RV, open_R).topk(min(size, vocab)).values
        before_RK = best_RK.cumsum(-1, dtype=torch.int64) - best_RK.long()
        inside_RK = before_RK < needed_R[open_R, None]
        last_R1 = inside_RK.sum(-1, keepdim=True).clamp(min=1) - 1
        floor_R[open_R] = best_RK.gather(1, last_R1)[:, 0]
        open_R = open_R[inside_RK[:, -1]]
        if size >= vocab or len(open_R) == 0:
            return floor_R
        size *= _NUCLEUS_GROWTH


def _zero_below(weight_EV: Tensor, floor: Tensor, rows: list[int] | None = None) -> None:
    """In place. `floor` is that of all rows, or of `rows` only."""
    if rows is not None and len(rows) < len(weight_EV):
        floor_E = torch.zeros_like(weight_EV[:, 0])
        floor_E[rows] = floor
        floor = floor_E
    weight_EV.masked_fill_(weight_EV < floor[:, None], 0.0)


def _take(tensor: Tensor, rows: list[int] | Tensor) -> Tensor:
    """Some rows; no copy when it is all of them."""
    return tensor if len(rows) == len(tensor) else tensor[rows]


def _logprobs(logits_EV: Tensor, tokens_E: Tensor, states: Sequence[SamplingState]) -> dict[int, SampledLogprobs]:
    """By row, of those that ask."""
    asked = {row: n for row, state in enumerate(states) if (n := state.params.logprobs) is not None}
    if not asked:
        return {}
    rows = list(asked)
    logits_RV = _take(logits_EV, rows)
    chosen_R1 = _take(tokens_E, rows)[:, None]
    chosen_logit_R1 = logits_RV.gather(1, chosen_R1)
    logsumexp_R1 = logits_RV.logsumexp(-1, keepdim=True)
    chosen = (chosen_logit_R1 - logsumexp_R1)[:, 0].tolist()
    ranks = ((logits_RV > chosen_logit_R1).sum(-1) + 1).tolist()
    best = logits_RV.topk(min(max(asked.values()), logits_RV.shape[1]))
    top_ids, top_logprobs = best.indices.tolist(), (best.values - logsumexp_R1).tolist()

    return {
        row: SampledLogprobs(chosen[i], ranks[i], tuple(top_ids[i][:n]), tuple(top_logprobs[i][:n]))
        for i, (row, n) in enumerate(asked.items())
    }
