"""The start of an engine: what a configuration asks for, put together step by step."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from longspan.config import EngineConfig, SchedulerConfig, instances_in_words
from longspan.core.costs.cost_model import FittedCostModel
from longspan.core.hierarchy import make_scheduler
from longspan.core.policies import create_policy, told_of_alias
from longspan.core.policies.base import Policy, is_tuned_at_start
from longspan.core.policies.episode import EpisodePolicy
from longspan.engine.async_llm import AsyncLLM, to_its_end
from longspan.engine.deployment import describe_deployment
from longspan.engine.detokenizer import Detokenizer
from longspan.engine.engine_core import EngineCore
from longspan.engine.episodes import estimate_cost_model
from longspan.engine.fingerprint import fingerprint
from longspan.engine.grammars import Grammars
from longspan.engine.node_facts import node_facts
from longspan.engine.observer.observation import Observation
from longspan.engine.prefixes import PrefixKeys
from longspan.engine.preflight import check_model, check_settings, gathering_place
from longspan.engine.shaping import with_shape
from longspan.engine.tokenizer import Tokenizer
from longspan.executor.base import DeviceInfo, Executor, News
from longspan.executor.choice import make_executor
from longspan.executor.nodes.gathering import Gathering, Nodes
from longspan.executor.ray.nodes import RayNodes
from longspan.metrics.event_log import open_log
from longspan.models.architecture import ModelConfig
from longspan.models.catalog import ResolvedModel, resolve_model
from longspan.models.config import load_model_config
from longspan.models.generation_config import load_generation_config
from longspan.phases import OnPhase, Phase, ignore
from longspan.pipeline import balanced_stages
from longspan.sib import Deployment, read_sib
from longspan.tuning.targets import targets
from longspan.worker.matcher import is_installed
from longspan.worker.messages import LoadVocabulary
from longspan.worker.spec import WorkerSpec

logger = logging.getLogger(__name__)

_MIN_KV_TOKENS = 8192  # the default pool on a CPU holds at least this many on each instance,
_CONTEXTS_IN_POOL = 4  # and this many of the longest contexts over all instances


async def start_engine(config: EngineConfig, policy: Policy | None = None, on_phase: OnPhase = ignore) -> AsyncLLM:
    """Load the model on all instances.

    policy: one of your own, instead of the named one. on_phase: hears how far the start is.

    Raises ConfigError, ModelError, EngineDeadError; what can be known beforehand is refused before anything is
    fetched or loaded.
    """
    begun = time.monotonic()
    if policy is None:
        policy = create_policy(config.policy)
        if told := told_of_alias(config.policy):
            logger.warning("%s", told)
    check_settings(config, policy)
    sib = read_sib(config.sib) if config.sib is not None else None
    model = await asyncio.to_thread(resolve_model, config.model, on_phase, config.revision)
    on_phase(Phase(f"reading the configuration of {model.name}"))
    model_config = load_model_config(model.path, config.rope_scaling)
    facts = await asyncio.to_thread(node_facts, config, model.path) if config.has_machines else {}
    config = await with_shape(config, policy, model, model_config, on_phase)
    check_model(config, policy, model, model_config)
    executor = make_executor(config, _specs(config, model.path, model_config.num_layers), _nodes(config, facts))
    start = _Start(config, policy, model, model_config, executor, on_phase)
    try:
        deployment = await start.load()
        if sib is not None and config.sib is not None:
            sib.require(deployment, config.sib)
        await start.allocate()
        cost_model = sib.cost_model if sib is not None else None
        if cost_model is None and policy.needs_cost_model:
            cost_model = await start.estimate()
        if cost_model is not None:
            start.take_aim(cost_model)
        engine = start.assemble(policy, cost_model, start.observation(cost_model))
        engine.fingerprint = await asyncio.to_thread(fingerprint, model.path, deployment, config.rope_scaling)
        if config.generation_config == "auto":
            engine.default_sampling = _default_sampling(model.path)
    except BaseException:
        await to_its_end(start.executor.close)
        for core in start.cores:
            await to_its_end(core.records.close)
        raise
    engine.core.fleet.can_change = start.executor.survive_losses()
    engine.watch()
    start.tell(engine)
    on_phase(Phase(f"ready in {time.monotonic() - begun:.1f} s", is_last=True))
    return engine


class _Start:
    """One start, under way. What `load` and `allocate` find out is there once they are through.

    cores: all that were made; the last one runs.
    """

    device: DeviceInfo
    tokenizer: Tokenizer
    deployment: Deployment
    scheduler_config: SchedulerConfig
    grammars: Grammars

    def __init__(
        self, config: EngineConfig, policy: Policy, model: ResolvedModel, model_config: ModelConfig,
        executor: Executor, on_phase: OnPhase,
    ) -> None:  # fmt: skip
        self.config = config
        self.policy = policy
        self.model = model
        self.model_config = model_config
        self.on_phase = on_phase
        self.max_model_len = config.max_model_len or model_config.max_model_len
        self.executor = executor
        self.loop = asyncio.get_running_loop()
        self.cores: list[EngineCore] = []

    async def load(self) -> Deployment:
        """Start the workers, and load the tokenizer meanwhile."""
        self.device, self.tokenizer = await asyncio.gather(
            asyncio.to_thread(self.executor.start, self._on_reply, self._on_failure, self.on_phase),
            asyncio.to_thread(Tokenizer.load, self.model, self.config.chat_template),
        )
        self.deployment = describe_deployment(self.config, self.model.name, self.model_config, self.device)
        return self.deployment

    # Workers report from threads of their own; the engine lives on the loop.

    def _on_reply(self, news: News) -> None:
        self.loop.call_soon_threadsafe(lambda: self.cores[-1].on_reply(news))

    def _on_failure(self, message: str) -> None:
        if self.cores:
            self.loop.call_soon_threadsafe(lambda: self.cores[-1].fail(message))

    async def allocate(self) -> None:
        """Make the KV pools; how large they are, the scheduler must know."""
        kv_tokens = _kv_tokens(self.config, self.max_model_len, self.device)
        self.on_phase(Phase(f"allocating KV for {kv_tokens} tokens on each instance"))
        await asyncio.to_thread(self.executor.allocate_kv, kv_tokens)
        config = self.config
        vocabulary = LoadVocabulary(
            self.tokenizer.backend.to_str(), self.tokenizer.eos_token_ids, self.model_config.vocab_size
        )
        self.grammars = Grammars(vocabulary)
        if is_installed():  # now, for it takes a worker a good part of a second
            for instance in range(config.num_instances):
                self.executor.submit(instance, vocabulary)
        self.scheduler_config = SchedulerConfig.of(
            config, num_instances=config.num_instances, pp=config.num_stages, kv_tokens=kv_tokens
        )

    async def estimate(self) -> FittedCostModel:
        """The cost model of a few batches that run now."""
        self.on_phase(Phase("measuring the machine's speed"))
        prober = EpisodePolicy()
        probe = self.assemble(prober, None)
        cost_model = await estimate_cost_model(probe, prober, self.deployment.model_shape)
        logger.info(
            "the policy %s predicts times: they are estimated from a few batches; "
            "`longspan profile` measures them, for --sib", self.policy.name,
        )  # fmt: skip
        return cost_model

    def take_aim(self, cost_model: FittedCostModel) -> None:
        """What requests that name no service level are served by, where nobody says, follows from the costs here."""
        config = self.config
        if not is_tuned_at_start(self.policy) or None not in (config.tpot_slo_s, config.ttft_slo_floor_s):
            return
        aims = targets(cost_model, config.objective)
        if config.tpot_slo_s is None:
            self.scheduler_config = replace(self.scheduler_config, tpot_slo_s=aims.tpot_s)
            logger.info("a TPOT of %g s for requests that name none: %s", aims.tpot_s, aims.reason)
        if config.ttft_slo_floor_s is None:
            self.scheduler_config = replace(self.scheduler_config, ttft_slo_floor_s=aims.ttft_floor_s)

    def observation(self, cost_model: FittedCostModel | None) -> Observation:
        """Begin an event log, if one is asked for."""
        config, observation = self.config, Observation()
        if (path := config.event_log) is not None:
            observation.begin_log(
                path,
                lambda: open_log(
                    path, self.scheduler_config, cost_model, policy=self.policy,
                    max_bytes=config.event_log_max_bytes, keep=config.event_log_keep,
                ),
            )  # fmt: skip
            if observation.log_path is not None:
                logger.info("the event log is %s", observation.log_path)
        return observation

    def assemble(
        self, policy: Policy, cost_model: FittedCostModel | None, observation: Observation | None = None
    ) -> AsyncLLM:
        """An engine over the workers, which report to it from now on."""
        config = self.scheduler_config
        if isinstance(policy, EpisodePolicy):
            config = replace(config, node_instances=None)  # what it runs is for any instances
        scheduler = make_scheduler(config, policy, cost_model)
        core = EngineCore(
            scheduler, self.executor, Detokenizer(self.tokenizer.backend), time.monotonic, observation, cost_model,
            self.config.stall_after_s,
        )  # fmt: skip
        self.cores.append(core)
        keys = None
        if self.config.prefix_cache and not isinstance(policy, EpisodePolicy):  # whose KV nobody knows afterwards
            rope = self.model_config.rope
            longest = rope.original_max_position_embeddings if rope.depends_on_length else None
            keys = PrefixKeys(
                config.prefix_block, shared_by_tenants=self.config.share_prefixes, longest=longest
            )
        return AsyncLLM(
            self.config, self.config.served_model_name or self.model.name, self.max_model_len,
            self.model_config.vocab_size, self.tokenizer, core, self.executor, self.deployment, self.grammars, keys,
        )  # fmt: skip

    def tell(self, engine: AsyncLLM) -> None:
        """What runs, in one line; and another, if requests may not be as long as the context."""
        device = self.device
        logger.info(
            "%s on %s x %s layers x tp %d, %s %s, %d KV tokens each, context up to %d",
            self.model.name, instances_in_words(self.config.num_instances), "+".join(map(str, device.pp_layers)),
            self.config.tp, device.device, device.dtype, self.scheduler_config.kv_tokens, self.max_model_len,
        )  # fmt: skip
        if self.config.executor != "inproc" and not engine.core.fleet.can_change:
            logger.info("workers exchange in a way that cannot go on without one of them: a loss ends the server")
        logger.info("%s", self.tokenizer.chat_format.told_in_log(self.tokenizer.has_chat_template))
        if engine.request_limit < self.max_model_len:
            logger.warning(
                "a request may have up to %d tokens, prompt and output together, though the context is %d: that is %s; "
                "more --kv-tokens take longer ones", engine.request_limit, self.max_model_len, engine.room.rstrip(","),
            )  # fmt: skip


def _nodes(config: EngineConfig, facts: Mapping[str, str]) -> Nodes | None:
    """The other machines, if there are to be any."""
    if config.executor == "ray":
        return RayNodes(config, facts)
    if config.nnodes == 1:
        return None
    address, port, key = gathering_place(config)
    return Nodes(Gathering(address, port, key, config.nnodes, facts), config.worker_timeout_s)


def _specs(config: EngineConfig, model: Path, num_layers: int) -> list[WorkerSpec]:
    """One for each device, in rank order."""
    pp_layers = config.pp_layers
    if config.has_machines and config.num_stages > 1 and pp_layers is None:  # else workers agree by what one measures
        pp_layers = balanced_stages(num_layers, config.num_stages, layer_s=1.0, first_s=0.0, last_s=0.0)
    return [
        WorkerSpec(
            model_path=str(model), instance=instance, stage=stage, tp_rank=tp_rank,
            num_instances=config.num_instances, tp=config.tp, pp=config.num_stages, pp_layers=pp_layers,
            dtype=config.dtype, device=config.device, threads=config.threads_per_device,
            transport=config.transport, quantization=config.quantization, rope_scaling=config.rope_scaling,
        )
        for instance in range(config.num_instances)
        for stage in range(config.num_stages)
        for tp_rank in range(config.tp)
    ]  # fmt: skip


def _default_sampling(model: Path) -> Mapping[str, float]:
    advised = load_generation_config(model)
    if advised:
        told = ", ".join(f"{name} {value:g}" for name, value in advised.items())
        logger.info("requests that do not say are sampled as the model's generation_config.json advises: %s", told)
    return advised


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
    wanted = max(_MIN_KV_TOKENS, _CONTEXTS_IN_POOL * max_model_len // config.num_instances)
    return max(1, min(device.kv_tokens_fit, wanted))
