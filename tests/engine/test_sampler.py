"""The sampler against a plain reference in float64, token by token."""

from __future__ import annotations

import math
import pickle
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longspan.errors import RequestError
from longspan.sampling_params import MIN_REPETITION_PENALTY, SamplingParams
from longspan.worker import sampler as sampler_module
from longspan.worker.sampler import Sampler
from longspan.worker.sampling_state import SampledToken, SamplingState

Array = np.ndarray[Any, np.dtype[np.float64]]


def state(seed: int = 0, position: int = 0, **params: Any) -> SamplingState:
    return SamplingState(params=SamplingParams(**params), seed=seed, num_output_tokens=position)


def sample(logits: torch.Tensor, states: Sequence[SamplingState]) -> list[int]:
    return [token.token_id for token in sampled(logits, states)]


def sampled(logits: torch.Tensor, states: Sequence[SamplingState]) -> list[SampledToken]:
    tokens = [token for token in Sampler().sample(logits, states) if token is not None]
    assert len(tokens) == len(states), "finite logits give a token each"
    return tokens


def weights(logits: torch.Tensor, params: Sequence[SamplingParams]) -> torch.Tensor:
    return sampler_module.weights(logits, logits.amax(-1), params)


def random_logits(rows: int, vocab: int, *, seed: int = 0, spread: float = 3.0) -> torch.Tensor:
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) * spread


def reference(logits: Sequence[float], params: SamplingParams, *, slack: float = 0.0) -> Array:
    """Probabilities after temperature, min_p, top_k, top_p; equals go together.

    `slack` widens min_p and top_p. Tokens 2**40 times less probable than the best one are left out.
    """
    scaled = np.asarray(logits, dtype=np.float64) / params.temperature
    kept = np.exp(scaled - scaled.max())
    kept[kept < max(min(params.min_p * (1 - slack), 1.0), 2**-40)] = 0
    if params.top_k:
        kept[kept < sorted(kept, reverse=True)[: params.top_k][-1]] = 0
    if params.top_p < 1:
        sofar, wanted = 0.0, min(params.top_p * (1 + slack), 1.0) * kept.sum()
        for value in sorted(kept, reverse=True):
            sofar += value
            if sofar >= wanted:
                break
        kept[kept < value] = 0
    probabilities: Array = kept / kept.sum()
    return probabilities


filters = st.fixed_dictionaries(
    {
        "temperature": st.floats(0.05, 2.0),
        "top_k": st.integers(0, 12) | st.just(10_000),
        "top_p": st.just(1.0) | st.floats(0.01, 1.0),
        "min_p": st.just(0.0) | st.floats(0.0, 1.0),
    }
)
# Equal, or so far apart that fp32 and float64 put them in the same order.
some_logits = st.lists(
    st.integers(-3, 3).map(float) | st.integers(-8000, 8000).map(lambda n: n / 1000), min_size=1, max_size=12
)


@settings(max_examples=400)
@given(logits=some_logits, rows=st.lists(filters, min_size=1, max_size=4))
def test_filters_leave_the_reference_distribution(logits: list[float], rows: list[dict[str, Any]]) -> None:
    params = [SamplingParams(**row) for row in rows]
    found = weights(torch.tensor([logits] * len(rows)), params).double()
    assert torch.equal(found, found.trunc()), "sums are exact only of whole numbers"
    for weight, row in zip(found, params, strict=True):
        got = (weight / weight.sum()).numpy()
        narrow, wide = reference(logits, row, slack=-1e-5), reference(logits, row, slack=1e-5)
        sure, kept, possible = (set(np.flatnonzero(some > 1e-9)) for some in (narrow, got, wide))
        assert sure <= kept <= possible, "beyond rounding at the border"
        if sure == possible:
            np.testing.assert_allclose(got, narrow, atol=1e-5)


@pytest.mark.parametrize("spread", [0.01, 1.0, 5.0])
@pytest.mark.parametrize(
    "params", [{"top_p": 0.97}, {"top_k": 700}, {"top_k": 700, "top_p": 0.9}, {"min_p": 0.1}]
)
def test_wide_and_narrow_nuclei_in_one_batch(spread: float, params: dict[str, Any]) -> None:
    """5,000 tokens: the nucleus is found in the first, second or third round, not the same for all rows."""
    logits = torch.cat([random_logits(2, 5000, spread=spread), random_logits(1, 5000, spread=10.0)])
    chosen = SamplingParams(**params)
    found = weights(logits, [chosen] * 3).double()
    for row, weight in zip(logits, found, strict=True):
        expected = reference(row.tolist(), chosen)
        assert abs(int((weight > 0).sum()) - np.count_nonzero(expected)) <= 1
        np.testing.assert_allclose((weight / weight.sum()).numpy(), expected, atol=2e-4)


@pytest.mark.parametrize(
    "params", [{}, {"temperature": 0.5}, {"temperature": 2.0, "top_p": 0.8}, {"top_k": 5}, {"min_p": 0.05}]
)
def test_frequencies_match_the_distribution(params: dict[str, Any]) -> None:
    """Chi-square of 20,000 draws, half of them one request's successive tokens, half many requests' first."""
    half = 10_000
    row = random_logits(1, 30, spread=1.5)
    states = [state(7, position, **params) for position in range(half)]
    states += [state(seed, **params) for seed in range(half)]
    counts = np.bincount(sample(row.expand(2 * half, -1), states), minlength=30)
    expected = reference(row[0].tolist(), SamplingParams(**params)) * 2 * half
    assert (counts[expected == 0] == 0).all()
    counts, expected = counts[expected > 0], expected[expected > 0]
    freedom = len(counts) - 1
    assert ((counts - expected) ** 2 / expected).sum() < freedom + 4 * math.sqrt(2 * freedom)


def mixed_states() -> list[SamplingState]:
    settings_: list[dict[str, Any]] = [
        {"temperature": 0.0},
        {},
        {"top_p": 0.9, "temperature": 1.5},
        {"top_k": 20, "logprobs": 3},
        {"min_p": 0.02, "repetition_penalty": 1.3},
        {"temperature": 0.0, "frequency_penalty": 0.7, "logprobs": 0},
        {"top_k": 50, "top_p": 0.95, "presence_penalty": 1.0},
    ]
    return [
        SamplingState.start(SamplingParams(**params), seed, [1, 2, 3], [5, 5, 6])
        for seed, params in enumerate(settings_)
    ]


@settings(max_examples=40)
@given(rows=st.lists(st.integers(0, 6), min_size=1, max_size=12))
def test_a_row_does_not_depend_on_the_others(rows: list[int]) -> None:
    logits, states = random_logits(7, 600), mixed_states()
    alone = [sampled(logits[row : row + 1], [states[row]])[0] for row in range(7)]
    together = sampled(logits[rows], [states[row] for row in rows])
    for row, token in zip(rows, together, strict=True):
        assert token.token_id == alone[row].token_id
        assert (token.logprobs is None) == (alone[row].logprobs is None)


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, states = random_logits(7, 600), mixed_states()
    whole = sample(logits, states)
    monkeypatch.setattr(sampler_module, "_CPU_BLOCK", 1300)
    assert sample(logits, states) == whole


def test_logits_and_states_are_left_as_they_were() -> None:
    logits, states = random_logits(7, 600), mixed_states()
    logits_before, states_before = logits.clone(), [pickle.dumps(state) for state in states]
    Sampler().sample(logits, states)
    assert torch.equal(logits, logits_before)
    assert [pickle.dumps(state) for state in states] == states_before


@pytest.mark.parametrize("others", [[], [state(1, top_p=0.5)]])
def test_greedy_takes_the_first_of_equals(others: list[SamplingState]) -> None:
    logits = torch.zeros(1 + len(others), 5000)
    logits[0, [4321, 77, 1234]] = 2.0
    assert sample(logits, [state(temperature=0.0), *others])[0] == 77


def test_extremes() -> None:
    logits = random_logits(4, 50)
    best = logits.argmax(-1).tolist()
    assert sample(logits, [state(seed, temperature=1e-30) for seed in range(4)]) == best
    assert sample(logits, [state(seed, top_p=1e-9) for seed in range(4)]) == best
    assert sample(logits, [state(seed, top_k=1) for seed in range(4)]) == best
    assert sample(logits, [state(seed, min_p=1.0) for seed in range(4)]) == best
    assert sample(torch.zeros(1, 1), [state(top_p=0.5, top_k=3)]) == [0]
    assert Sampler().sample(torch.zeros(0, 50), []) == []


def test_masked_tokens_are_never_drawn() -> None:
    logits = torch.full((300, 9), -math.inf)
    logits[:, [2, 5]] = 0.0
    states = [state(seed, top_p=0.99 if seed % 2 else 1.0) for seed in range(300)]
    assert set(sample(logits, states)) == {2, 5}


token_lists = st.lists(st.integers(0, 7), max_size=10)


@settings(max_examples=200)
@given(
    logits=st.lists(st.floats(-8, 8, width=32), min_size=8, max_size=8),
    prompt=token_lists,
    output=token_lists,
    repetition=st.just(1.0) | st.floats(0.1, 3.0),
    presence=st.just(0.0) | st.floats(-2.0, 2.0),
    frequency=st.just(0.0) | st.floats(-2.0, 2.0),
)
def test_penalties(
    logits: list[float],
    prompt: list[int],
    output: list[int],
    repetition: float,
    presence: float,
    frequency: float,
) -> None:
    params = SamplingParams(
        repetition_penalty=repetition, presence_penalty=presence, frequency_penalty=frequency
    )
    expected = list(logits)
    for token in set(prompt) | set(output):
        value = expected[token]
        value = value / repetition if value > 0 else value * repetition
        expected[token] = value - frequency * output.count(token) - presence * (token in output)
    states = [state(), SamplingState.start(params, 0, prompt, output)]
    got = sampler_module._penalize(torch.tensor([logits, logits]), states)
    assert got[0].tolist() == logits
    np.testing.assert_allclose(got[1].numpy(), expected, rtol=1e-5, atol=1e-5)


def test_greedy_looks_at_penalised_logits_and_logprobs_at_raw_ones() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.5]])
    params = SamplingParams(temperature=0.0, frequency_penalty=1.0, logprobs=2)
    (token,) = sampled(logits, [SamplingState.start(params, 0, [], [1])])
    assert token.token_id == 2
    assert token.logprobs is not None
    assert token.logprobs.rank == 2
    assert token.logprobs.top_token_ids == (1, 2)


@settings(max_examples=100)
@given(
    rows=st.lists(st.none() | st.integers(0, 20), min_size=1, max_size=5),
    vocab=st.integers(1, 60),
    seed=st.integers(0, 1000),
)
def test_logprobs_are_those_of_the_model(rows: list[int | None], vocab: int, seed: int) -> None:
    logits = random_logits(len(rows), vocab, seed=seed)
    states = [state(seed + row, logprobs=n, temperature=1.7, top_k=40) for row, n in enumerate(rows)]
    expected = torch.log_softmax(logits.double(), dim=-1)
    for token, n, truth in zip(sampled(logits, states), rows, expected, strict=True):
        if n is None:
            assert token.logprobs is None
            continue
        got = token.logprobs
        assert got is not None
        assert got.logprob == pytest.approx(truth[token.token_id].item(), abs=1e-5)
        order = sorted(range(vocab), key=lambda t: -truth[t].item())
        assert got.rank == order.index(token.token_id) + 1
        assert list(got.top_token_ids) == order[:n]
        assert got.top_logprobs == pytest.approx([truth[t].item() for t in order[:n]], abs=1e-5)


def test_the_random_numbers_are_fixed_for_good() -> None:
    """A seed means the same text in the next version too."""
    found = [state(seed, position).uniform() for seed, position in ((0, 0), (0, 1), (1, 0), (-1, 9))]
    assert found == [0.0564663990004608, 0.6487508310490744, 0.44008326622012284, 0.2560714493021985]
    many = [state(seed, position).uniform() for seed in range(100) for position in range(100)]
    assert len(set(many)) == len(many)
    assert all(0.0 <= number < 1.0 for number in many)
    assert np.mean(many) == pytest.approx(0.5, abs=0.01)
    assert np.var(many) == pytest.approx(1 / 12, abs=0.005)


def test_state_moves_between_processes_and_goes_on_as_before() -> None:
    logits = random_logits(40, 600)

    def run(move: bool) -> list[int]:
        params = SamplingParams(repetition_penalty=1.2, presence_penalty=0.5, top_p=0.95, stop=("x",))
        moving = SamplingState.start(params, seed=-3, prompt_token_ids=[4, 4, 8])
        tokens = []
        for row in logits:
            tokens += sample(row[None], [moving])
            moving.append(tokens[-1])
            if move:
                moving = msgspec.msgpack.decode(msgspec.msgpack.encode(moving), type=SamplingState)
        assert moving == SamplingState.start(params, -3, [4, 4, 8], tokens)
        return tokens

    assert run(move=True) == run(move=False)


def test_results_are_plain_data() -> None:
    tokens = sampled(random_logits(7, 600), mixed_states())
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(tokens), type=list[SampledToken]) == tokens


def test_token_counts_are_kept_only_where_needed() -> None:
    prompt, output = range(100), [3, 3]
    assert SamplingState.start(SamplingParams(), 0, prompt, output).token_counts == {}
    assert SamplingState.start(SamplingParams(presence_penalty=1.0), 0, prompt, output).token_counts == {3: 2}
    repetition = SamplingState.start(SamplingParams(repetition_penalty=2.0), 0, prompt, output)
    assert repetition.token_counts == dict.fromkeys(range(100), 0) | {3: 2}
    assert repetition.num_output_tokens == 2


BAD = {
    "NaN": [0.0, math.nan, 5.0, 1.0], "plus infinity": [0.0, math.inf, 1.0, 2.0],
    "all minus infinity": [-math.inf] * 4, "all NaN": [math.nan] * 4, "both": [math.inf, -math.inf, math.nan, 0.0],
}  # fmt: skip


@pytest.mark.parametrize("row", BAD.values(), ids=BAD.keys())
@pytest.mark.parametrize("params", [
    {"temperature": 0.0}, {"temperature": 0.0, "logprobs": 2}, {},
    {"top_p": 0.9, "top_k": 3, "min_p": 0.1, "logprobs": 3},
    {"temperature": 0.0, "frequency_penalty": 1.0}, {"repetition_penalty": 1.5},
])  # fmt: skip
def test_a_row_that_is_not_finite_gives_no_token_and_leaves_the_others_alone(row: list, params: dict) -> None:
    good = random_logits(3, 4)
    logits = torch.cat([good[:1], torch.tensor([row]), good[1:], torch.tensor([row])])
    states = [SamplingState.start(SamplingParams(**params), seed, [1, 2], [2]) for seed in range(5)]
    tokens = Sampler().sample(logits, states)
    assert [token is None for token in tokens] == [False, True, False, False, True]
    assert [tokens[i] for i in (0, 2, 3)] == sampled(good, [states[i] for i in (0, 2, 3)])


def test_some_logits_of_minus_infinity_are_tokens_that_never_come() -> None:
    logits = torch.tensor([[-math.inf, 1.0, -math.inf, 0.5]] * 60)
    states = [state(seed, temperature=2.0, logprobs=4) for seed in range(60)]
    assert {token.token_id for token in sampled(logits, states)} == {1, 3}


def test_the_strongest_penalties_leave_every_logit_finite() -> None:
    """What a client may ask for is never an error of the model's."""
    strongest = SamplingParams(
        repetition_penalty=MIN_REPETITION_PENALTY, frequency_penalty=-2.0, presence_penalty=-2.0, temperature=5e-324
    )
    penalised = SamplingState.start(strongest, 0, [1], [1] * 1000)
    assert sampled(torch.tensor([[1.0, 1e30, 2.0]]), [penalised]) == [SampledToken(1)]
    with pytest.raises(RequestError, match="repetition_penalty"):
        SamplingParams(repetition_penalty=5e-324)
