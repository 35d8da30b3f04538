"""The engine on an event loop: what servers use."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from longspan.config import EngineConfig, SchedulerConfig
from longspan.core.cost_model import FittedCostModel
from longspan.core.policies import create_policy
from longspan.core.policies.base import Policy
from longspan.core.policies.episode import EpisodePolicy
from longspan.core.scheduler import Scheduler
from longspan.engine.deployment import describe_deployment
from longspan.engine.detokenizer import Detokenizer, OutputProcessor
from longspan.engine.engine_core import EngineCore
from longspan.engine.episodes import estimate_cost_model
from longspan.engine.fingerprint import fingerprint
from longspan.engine.preflight import check_model, check_settings
from longspan.engine.protocol import TokenIds
from longspan.engine.request import EngineRequest
from longspan.engine.tokenizer import Tokenizer
from longspan.errors import (
    EngineDeadError,
    EngineDrainingError,
    LongspanError,
    RequestError,
)
from longspan.executor.base import DeviceInfo, Executor, make_executor
from longspan.metrics.event_log import EventLogWriter
from longspan.models.catalog import resolve_model
from longspan.models.config import load_model_config
from longspan.models.generation_config import load_generation_config
from longspan.outputs import EngineStats, RequestOutput, RequestTimes
from longspan.phases import OnPhase, Phase, ignore
from longspan.sampling_params import SamplingParams
from longspan.sib import Deployment, read_sib
from longspan.worker.messages import Reply, WorkerSpec

logger = logging.getLogger(__name__)

_WATCH_S = 1.0  # how often the watchdog is asked
_MIN_KV_TOKENS = 8192  # the default pool on a CPU holds at least this many on each instance,
_CONTEXTS_IN_POOL = 4  # and this many of the longest contexts over all instances


class AsyncLLM:
    """One engine: `start` it, `generate` from it, `close` it; all on one event loop."""

    def __init__(
        self, config: EngineConfig, model_name: str, max_model_len: int, vocab_size: int, tokenizer: Tokenizer,
        core: EngineCore, executor: Executor, deployment: Deployment,
    ) -> None:  # fmt: skip
        self.config = config
        self.model_name = model_name
        self.max_model_len = max_model_len
        self.vocab_size = vocab_size
        self.fingerprint = ""
        self.default_sampling: Mapping[str, float] = {}
        self.tokenizer = tokenizer
        self.core = core
        self.executor = executor
        self.deployment = deployment
        self.draining = False
        self._closed = False
        self._idle = asyncio.Event()
        self._idle.set()
        core.on_idle = self._idle.set
        self._dead = asyncio.Event()
        core.on_dead = self._dead.set
        self._watching: asyncio.Task[None] | None = None

    @classmethod
    async def start(
        cls, config: EngineConfig, policy: Policy | None = None, on_phase: OnPhase = ignore
    ) -> AsyncLLM:
        """Load the model on all instances.

        policy: one of your own, instead of the named one. on_phase: hears how far the start is.

        Raises ConfigError, ModelError, EngineDeadError; what can be known beforehand is refused before anything is
        fetched or loaded.
        """
        begun = time.monotonic()
        policy = policy if policy is not None else create_policy(config.policy)
        check_settings(config, policy)
        sib = read_sib(config.sib) if config.sib is not None else None
        model = await asyncio.to_thread(resolve_model, config.model, on_phase)
        on_phase(Phase(f"reading the configuration of {model.name}"))
        model_config = load_model_config(model.path)
        check_model(config, policy, model, model_config)
        max_model_len = config.max_model_len or model_config.max_model_len
        specs = [
            WorkerSpec(
                model_path=str(model.path), instance=instance, stage=stage, tp_rank=tp_rank,
                num_instances=config.instances, tp=config.tp, pp=config.pp, pp_layers=config.pp_layers,
                dtype=config.dtype, device=config.device, threads=config.threads_per_device,
                transport=config.transport, quantization=config.quantization,
            )
            for instance in range(config.instances)
            for stage in range(config.pp)
            for tp_rank in range(config.tp)
        ]
        executor = make_executor(config.executor, specs, config.worker_timeout_s)
        loop = asyncio.get_running_loop()
        started: list[EngineCore] = []  # the last one runs

        # Workers report from threads of their own; the engine lives on the loop.
        def on_reply(reply: Reply) -> None:
            loop.call_soon_threadsafe(lambda: started[-1].on_reply(reply))

        def on_failure(message: str) -> None:
            if started:
                loop.call_soon_threadsafe(lambda: started[-1].fail(message))

        def assemble(
            scheduler_config: SchedulerConfig, policy: Policy, cost_model: FittedCostModel | None,
            log: EventLogWriter | None = None,
        ) -> AsyncLLM:  # fmt: skip
            scheduler = Scheduler(scheduler_config, policy, cost_model)
            core = EngineCore(
                scheduler, executor, Detokenizer(tokenizer.backend), time.monotonic, log, cost_model,
                config.stall_after_s,
            )  # fmt: skip
            started.append(core)
            vocab_size = model_config.vocab_size
            return cls(config, served, max_model_len, vocab_size, tokenizer, core, executor, deployment)

        try:
            tokenizer_loading = asyncio.to_thread(Tokenizer.load, model)
            device, tokenizer = await asyncio.gather(
                asyncio.to_thread(executor.start, on_reply, on_failure, on_phase), tokenizer_loading
            )
            deployment = describe_deployment(config, model.name, model_config, device)
            if sib is not None and config.sib is not None:
                sib.require(deployment, config.sib)
            kv_tokens = _kv_tokens(config, max_model_len, device)
            on_phase(Phase(f"allocating KV for {kv_tokens} tokens on each instance"))
            await asyncio.to_thread(executor.allocate_kv, kv_tokens)
            scheduler_config = SchedulerConfig(
                num_instances=config.instances,
                pp=config.pp,
                kv_tokens=kv_tokens,
                policy=config.policy,
                max_waiting=config.max_waiting,
                max_batch_tokens=config.max_batch_tokens,
                max_requests_per_master=config.max_requests_per_master,
                lookahead=config.lookahead,
                ttft_slo_factor=config.ttft_slo_factor,
                ttft_slo_floor_s=config.ttft_slo_floor_s,
                tpot_slo_s=config.tpot_slo_s,
                chunk_size=config.chunk_size,
                kvp_tokens_per_shard=config.kvp_tokens_per_shard,
            )
            served = config.served_model_name or model.name
            cost_model = sib.cost_model if sib is not None else None
            if cost_model is None and policy.needs_cost_model:
                on_phase(Phase("measuring the machine's speed"))
                prober = EpisodePolicy()
                probe = assemble(scheduler_config, prober, None)
                cost_model = await estimate_cost_model(probe, prober, deployment.model_shape)
                logger.info(
                    "the policy %s predicts times: they are estimated from a few batches; "
                    "`longspan profile` measures them, for --sib", policy.name,
                )  # fmt: skip
            log = None
            if config.event_log is not None:
                log = EventLogWriter(
                    config.event_log, scheduler_config, cost_model, policy=policy,
                    max_bytes=config.event_log_max_bytes, keep=config.event_log_keep,
                )  # fmt: skip
                logger.info("the event log is %s", log.path)
            engine = assemble(scheduler_config, policy, cost_model, log)
            engine.fingerprint = await asyncio.to_thread(fingerprint, model.path, deployment)
            if config.generation_config == "auto":
                engine.default_sampling = _default_sampling(model.path)
        except BaseException:
            await _to_its_end(executor.close)
            raise
        engine._watching = loop.create_task(engine._watch())
        logger.info(
            "%s on %d instances x %s layers x tp %d, %s %s, %d KV tokens each, context up to %d",
            model.name, config.instances, "+".join(map(str, device.pp_layers)), config.tp, device.device, device.dtype,
            kv_tokens, max_model_len,
        )  # fmt: skip
        if engine.request_limit < max_model_len:
            logger.warning(
                "a request may have up to %d tokens, prompt and output together, though the context is %d: that is %s; "
                "more --kv-tokens take longer ones", engine.request_limit, max_model_len, engine._room().rstrip(","),
            )  # fmt: skip
        on_phase(Phase(f"ready in {time.monotonic() - begun:.1f} s", is_last=True))
        return engine

    # -- requests -------------------------------------------------------------------------------------------------

    def validate(self, prompt_token_ids: TokenIds, params: SamplingParams) -> SamplingParams:
        """The same params with `max_tokens` resolved. Raises RequestError if the request can never run.

        An array of integers is checked in a moment; to make one of a very long list is for another thread to do.
        """
        length = len(prompt_token_ids)
        if length == 0:
            raise RequestError("the prompt is empty; give it at least one token", param="prompt")
        limit, name = min(
            (self.max_model_len, "the model's maximum context length"),
            (self.core.scheduler.request_limit, self._room()),
        )
        if length >= limit:
            raise RequestError(
                f"the prompt has {length} tokens, but {name} is {limit} tokens, one of them at least for the "
                f"output; shorten the prompt",
                param="prompt", code="context_length_exceeded",
            )  # fmt: skip
        max_tokens = params.max_tokens or limit - length
        if length + max_tokens > limit:
            raise RequestError(
                f"{length} prompt tokens and max_tokens of {max_tokens} make {length + max_tokens}, but {name} "
                f"is {limit} tokens; shorten the prompt or lower max_tokens to {limit - length}",
                param="max_tokens", code="context_length_exceeded",
            )  # fmt: skip
        self._check_vocabulary(prompt_token_ids)
        return replace(params, max_tokens=max_tokens)

    def _check_vocabulary(self, prompt_token_ids: TokenIds) -> None:
        """The model has a row for each token id; the tokenizer may know more of them, or fewer."""
        ids = np.asarray(prompt_token_ids)
        if ids.ndim != 1 or ids.dtype.kind not in "iuO":  # whole numbers beyond 64 bits make objects
            raise RequestError("the prompt holds token ids that are no whole numbers", param="prompt")
        lowest, highest = ids.min(), ids.max()
        if lowest >= 0 and highest < self.vocab_size:
            return
        wrong = int(lowest if lowest < 0 else highest)
        text = self.tokenizer.token(wrong)
        raise RequestError(
            f"the prompt holds token id {wrong}{f' ({text!r})' if text else ''}, but the model knows only those from "
            f"0 to {self.vocab_size - 1}",
            param="prompt",
        )

    async def generate(
        self, prompt_token_ids: TokenIds, params: SamplingParams, request_id: str
    ) -> AsyncIterator[RequestOutput]:
        """Deltas, the last one with a finish reason. Closing the iterator aborts the request and frees its KV.

        Raises:
            RequestError, QueueFullError, EngineDrainingError, EngineDeadError: on the first step or later.
        """
        queue: asyncio.Queue[RequestOutput | LongspanError] = asyncio.Queue()
        request = self._admit(prompt_token_ids, self.validate(prompt_token_ids, params), request_id, queue)
        try:
            while True:
                item = await queue.get()
                if isinstance(item, LongspanError):
                    raise item
                yield item
                if item.finished:
                    return
        finally:
            self.core.abort(request)  # nothing, if it has ended

    def _admit(
        self, prompt_token_ids: TokenIds, params: SamplingParams, request_id: str,
        queue: asyncio.Queue[RequestOutput | LongspanError],
    ) -> EngineRequest:  # fmt: skip
        if self.core.error is not None:
            raise EngineDeadError(self.core.error)
        if self.draining:
            raise EngineDrainingError("the server is shutting down and takes no new requests")
        prompt = np.asarray(prompt_token_ids, dtype="<i4")
        processor = OutputProcessor(
            self.core.detokenizer, prompt, params, self.tokenizer.eos_token_ids
        )
        seed = secrets.randbits(63) if params.seed is None else params.seed
        times = RequestTimes(arrived=self.core.clock())
        request = EngineRequest(request_id, prompt, params, seed, processor, times, queue.put_nowait)
        was_idle = self._idle.is_set()
        self._idle.clear()  # now, for to add it may end it
        try:
            self.core.add(request)
        except LongspanError:
            if was_idle:
                self._idle.set()
            raise
        return request

    def abort(self, request_id: str) -> None:
        """End a request; its stream ends with finish reason "abort". Unknown ids are ignored."""
        request = self.core.requests.get(request_id)
        if request is not None:
            self.core.abort(request)

    # -- state ----------------------------------------------------------------------------------------------------

    @property
    def total_kv_tokens(self) -> int:
        return self.core.scheduler.config.total_kv_tokens

    @property
    def request_limit(self) -> int:
        return min(self.max_model_len, self.core.scheduler.request_limit)

    def _room(self) -> str:
        policy = self.core.scheduler.policy
        if policy.keeps_on_one_instance and self.config.instances > 1:
            return f"what an instance holds, on which the policy {policy.name!r} keeps a request,"
        return "the KV pool of all instances together"

    @property
    def error(self) -> str | None:
        return self.core.error

    @property
    def stalled(self) -> str | None:
        """Why it seems that the engine is stuck; None while what was decided comes to its end."""
        return self.core.stalled()

    async def dead(self) -> str:
        """Wait until the engine has died; returns why. (It does not die of `close`.)"""
        await self._dead.wait()
        assert self.core.error is not None
        return self.core.error

    async def _watch(self) -> None:
        """Tell the log once of what stalls, and when it has gone on."""
        told: str | None = None
        while True:
            await asyncio.sleep(_WATCH_S)
            stalled = self.core.stalled()
            if stalled is not None and told is None:
                logger.error("the engine stalls: %s", stalled)
            elif stalled is None and told is not None:
                logger.warning("the engine goes on; before, it stalled: %s", told)
            told = stalled

    def stats(self) -> EngineStats:
        return self.core.stats()

    async def idle(self) -> None:
        """Wait until no request is left, and nothing of any on the instances."""
        await self._idle.wait()

    # -- the end --------------------------------------------------------------------------------------------------

    async def drain(self, timeout_s: float) -> None:
        """Refuse new requests, wait for the running ones, abort those left at the timeout."""
        self.draining = True
        try:
            await asyncio.wait_for(self.idle(), timeout_s)
        except TimeoutError:
            for request in list(self.core.requests.values()):
                self.core.abort(request)

    async def close(self) -> None:
        """End the workers; what still runs fails."""
        if self._closed:
            return
        self._closed = True
        if self._watching is not None:
            self._watching.cancel()
        self.core.on_dead = lambda: None
        self.core.fail("the engine was closed")
        await _to_its_end(self.executor.close)
        if self.core.event_log is not None:
            await asyncio.to_thread(self.core.event_log.close)


def _default_sampling(model: Path) -> Mapping[str, float]:
    advised = load_generation_config(model)
    if advised:
        told = ", ".join(f"{name} {value:g}" for name, value in advised.items())
        logger.info("requests that do not say are sampled as the model's generation_config.json advises: %s", told)
    return advised


async def _to_its_end(work: Callable[[], None]) -> None:
    """Done in a thread, however often the caller is cancelled meanwhile: workers that were not ended would keep the
    process for ever."""
    task = asyncio.ensure_future(asyncio.to_thread(work))
    cancelled = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            cancelled = error
    task.result()
    if cancelled is not None:
        raise cancelled


def _kv_tokens(config: EngineConfig, max_model_len: int, device: DeviceInfo) -> int:
    """KV slots of each instance."""
    if config.kv_tokens is not None:
        if config.kv_tokens > device.kv_tokens_fit:
            logger.warning(
                "kv_tokens is %d; by the memory free now, up to %d are advisable",
                config.kv_tokens, device.kv_tokens_fit,
            )  # fmt: skip
        return config.kv_tokens
    if device.device.startswith("cuda"):
        return device.kv_tokens_fit
    wanted = max(_MIN_KV_TOKENS, _CONTEXTS_IN_POOL * max_model_len // config.instances)
    return max(1, min(device.kv_tokens_fit, wanted))
