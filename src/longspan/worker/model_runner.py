"""Runs batches on one device: lays out its part, calls the model, samples."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch

from longspan.attention.backend import AttentionBackend
from longspan.attention.elastic import ElasticAttention
from longspan.attention.layout import BatchLayout, lengths_of, plan_layout, positions_of
from longspan.core.actions import FreeKV, MigrateKV
from longspan.distributed.stream import HostStream, Stream
from longspan.distributed.tensor_parallel import TensorParallelGroup
from longspan.distributed.transport import Transport
from longspan.models.architecture import ModelConfig
from longspan.worker.kv_pool import KVPool
from longspan.worker.matcher import GrammarError, Mask, Matcher, Vocabulary
from longspan.worker.messages import BatchDone, PromptScores, Run
from longspan.worker.prompt_scores import score_prompts
from longspan.worker.sampler import Sampler
from longspan.worker.sampling_state import SampledToken, SamplingState

MOST_STEP_S = 0.25
"""CPU time that a grammar may take for one token: its request ends then, so that it holds others up no more than once.
What tries grammars out finds most of those that would."""


class Model(Protocol):
    """The interface of a model file, which holds one pipeline stage; see models/llama.py for the shapes."""

    @property
    def config(self) -> ModelConfig: ...

    def embed(self, token_ids_T: torch.Tensor, tp: TensorParallelGroup) -> torch.Tensor: ...

    def run_layers(
        self,
        x_TD: torch.Tensor,
        positions_T: torch.Tensor,
        attention: Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor],
        tp: TensorParallelGroup,
        on_last_layer: Callable[[], None] = ...,
        lengths_T: torch.Tensor | None = ...,
    ) -> torch.Tensor: ...

    def logits(self, x_ED: torch.Tensor, tp: TensorParallelGroup) -> torch.Tensor: ...


class ModelRunner:
    """One device's model, KV pool, and the sampling state of the requests whose tokens it emits.

    rank_of: the rank of another instance's device of the same stage, with the same tensor-parallel rank.
    previous, next: the ranks of the pipeline stages before and behind this one; None at the ends.
    on_progress: called at every layer. stream: of the thread that runs batches, on the pool's device.
    """

    def __init__(
        self,
        model: Model,
        pool: KVPool,
        backend: AttentionBackend,
        transport: Transport,
        tp: TensorParallelGroup,
        instance: int,
        rank_of: Callable[[int], int],
        on_progress: Callable[[], None],
        previous: int | None = None,
        next: int | None = None,
        stream: Stream | None = None,
    ) -> None:
        self.model = model
        self.pool = pool
        self.backend = backend
        self.transport = transport
        self.tp = tp
        self.instance = instance
        self.rank_of = rank_of
        self.previous = previous
        self.next = next
        self.on_progress = on_progress
        self.stream = stream or HostStream()
        self.sampler = Sampler()
        self.sampling: dict[str, SamplingState] = {}
        self.last_token: dict[str, int] = {}
        self.vocabulary: Vocabulary | None = None  # to be set, before a request has a grammar
        self.matchers: dict[str, Matcher] = {}

    def run(self, command: Run, on_last_layer: Callable[[], None] = lambda: None) -> BatchDone:
        """Run this instance's part of a batch, to its end on the device.

        on_last_layer: called once, while the last of this stage's layers is still to come. A GPU may be further behind.
        """
        begin = time.perf_counter()
        batch = command.batch
        self.sampling.update(command.sampling)
        for request_id in command.sampling:
            self.matchers.pop(request_id, None)  # of an earlier time as its emitter
        layout = plan_layout(batch, self.instance, self.pool, self.pool.device, self._may_lend)
        attention = ElasticAttention(
            layout,
            self.pool,
            self.backend,
            self.transport,
            self.rank_of,
            scale=self.pool.k_LGNK.shape[-1] ** -0.5,
            on_layer=self.on_progress,
        )
        positions_T = torch.from_numpy(positions_of(layout)).to(self.pool.device)
        lengths_T = None
        if self.model.config.rope.depends_on_length:
            lengths_T = torch.from_numpy(lengths_of(layout, command.prompt_tokens)).to(self.pool.device)
        x_TD = self._enter(layout, command.token_ids)
        model_begin = self.stream.record()
        x_TD = self.model.run_layers(x_TD, positions_T, attention, self.tp, on_last_layer, lengths_T)
        grammar_errors: dict[str, str] = {}
        sampled = self._leave(layout, x_TD, grammar_errors)
        prompt_scores: dict[str, PromptScores] = {}
        if self.next is None and command.scoring:
            prompt_scores = score_prompts(layout, command.scoring, x_TD, lambda x: self.model.logits(x, self.tp))
        end = self.stream.record()
        end.wait()
        tokens = {request_id: token for request_id, token in sampled.items() if token is not None}
        without = tuple(name for name, token in sampled.items() if token is None and name not in grammar_errors)
        model_s, total_s = end.seconds_since(model_begin), time.perf_counter() - begin
        return BatchDone(
            batch.batch_id, self.instance, tokens, model_s, total_s, without, grammar_errors, prompt_scores
        )

    def _may_lend(self, peer: int) -> bool:
        """Where the processor copies faster than it attends. Of GPUs and networks that is not known."""
        return self.pool.device.type == "cpu" and self.transport.shares_memory(self.rank_of(peer))

    def _enter(self, layout: BatchLayout, token_ids: dict[str, bytes]) -> torch.Tensor:
        """The residual stream [T, D], fp32, as it comes into this stage."""
        if self.previous is None:
            ids_T = torch.from_numpy(self._token_ids(layout, token_ids)).to(self.pool.device)
            return self.model.embed(ids_T, self.tp)
        shape = (layout.num_rows, self.model.config.hidden_size)
        x_TD = torch.empty(shape, dtype=torch.float32, device=self.pool.device)
        if layout.num_rows:
            self.transport.exchange([], [(x_TD, self.previous)]).wait()
        return x_TD

    def _leave(self, layout: BatchLayout, x_TD: torch.Tensor, errors: dict[str, str]) -> dict[str, SampledToken | None]:
        """Tokens by request, from the last stage; the others hand on. errors: gets those of grammars, by request."""
        if self.next is not None:
            if len(x_TD):
                self.transport.exchange([(x_TD, self.next)], []).wait()
            return {}
        rows_E = torch.tensor([row for _, row in layout.emits], dtype=torch.int64, device=self.pool.device)
        logits_EV = self.model.logits(x_TD[rows_E], self.tp)
        return self._sample(logits_EV, [request_id for request_id, _ in layout.emits], errors)

    def migrate(self, action: MigrateKV) -> None:
        """Send or receive the KV of a migration, to its end on the device. The source keeps it until `settle`."""
        if action.source == self.instance:
            kv_2LGTK = torch.cat([self.pool.read(*part) for part in action.parts], dim=3)
            self.transport.exchange([(kv_2LGTK, self.rank_of(action.target))], []).wait()
        else:
            layers, kv_heads, _, head_dim = self.pool.k_LGNK.shape
            shape = (2, layers, kv_heads, action.num_tokens, head_dim)
            kv_2LGTK = self.pool.k_LGNK.new_empty(shape)
            self.transport.exchange([], [(kv_2LGTK, self.rank_of(action.source))]).wait()
            begin = 0
            for residence, ranges in action.arriving:
                count = sum([end - start for start, end in ranges])
                self.pool.insert(residence, ranges, kv_2LGTK[:, :, :, begin : begin + count])
                begin += count
        self.stream.record().wait()

    def settle(self, action: MigrateKV) -> None:
        """Free the slots of what has moved away: it is sure at its target."""
        assert action.source == self.instance
        for part in () if action.is_copy else action.parts:
            self.pool.release(*part)

    def free(self, action: FreeKV) -> None:
        """Free the KV of a residence, all or ranges."""
        if action.ranges:
            self.pool.release(action.residence, action.ranges)
        else:
            self.pool.free(action.residence)

    def forget(self, request_id: str) -> None:
        """Forget how a request's tokens are sampled."""
        self.sampling.pop(request_id, None)
        self.last_token.pop(request_id, None)
        self.matchers.pop(request_id, None)

    def _token_ids(self, layout: BatchLayout, given: dict[str, bytes]) -> np.ndarray:
        parts = []
        for part in layout.rows:
            segment = part.segment
            if segment.request_id in given:
                ids = np.frombuffer(given[segment.request_id], dtype="<i4")
                parts.append(ids[part.first - segment.start : part.last - segment.start + 1 : part.step])
            else:
                parts.append(np.array([self.last_token[segment.request_id]], dtype=np.int32))
        return np.concatenate(parts).astype(np.int64) if parts else np.zeros(0, dtype=np.int64)

    def _sample(
        self, logits_EV: torch.Tensor, request_ids: list[str], errors: dict[str, str]
    ) -> dict[str, SampledToken | None]:
        if not request_ids:
            return {}
        states = [self.sampling[request_id] for request_id in request_ids]
        allowed = self._allowed(request_ids, errors)  # while a device may still work on the logits
        sampled = dict(zip(request_ids, self.sampler.sample(logits_EV, states, allowed), strict=True))
        for request_id, state in zip(request_ids, states, strict=True):
            if request_id in errors:
                sampled[request_id] = None
            # Where there is none the engine ends the request, but the next batch may have it already.
            token = sampled[request_id]
            token_id = token.token_id if token is not None else 0
            state.append(token_id)
            self.last_token[request_id] = token_id
            if (matcher := self.matchers.get(request_id)) is not None:
                matcher.append(token_id)
        return sampled

    def _allowed(self, request_ids: list[str], errors: dict[str, str]) -> dict[int, Mask]:
        """What grammars allow, by row."""
        masks: dict[int, Mask] = {}
        for row, request_id in enumerate(request_ids):
            if self.sampling[request_id].grammar is None:
                continue
            begin = time.thread_time()
            try:
                masks[row] = self._matcher(request_id).allowed()
            except GrammarError as error:
                errors[request_id] = str(error)
            if (took := time.thread_time() - begin) > MOST_STEP_S:
                errors[request_id] = f"it took {took:.2f} s of CPU time, but others wait for it meanwhile"
        return masks

    def _matcher(self, request_id: str) -> Matcher:
        if (matcher := self.matchers.get(request_id)) is None:
            state = self.sampling[request_id]
            assert self.vocabulary is not None and state.grammar is not None
            matcher = self.matchers[request_id] = self.vocabulary.matcher(state.grammar, state.seen)
        return matcher
