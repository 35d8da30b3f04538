"""What of vLLM the scheduler class does not go with. It is refused at the start, by name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from longspan.errors import ConfigError
from longspan.integrations.vllm.settings import Settings

HOOKS = (
    "_free_request", "_handle_blocked_waiting_request", "_mamba_block_aligned_split", "_preempt_request",
    "_reserve_prefill_lookahead", "_try_schedule_encoder_inputs", "add_request", "get_request_counts", "schedule",
    "shutdown", "update_from_output",
)  # fmt: skip
"""Methods of vLLM's scheduler that the class overrides, or calls: in a version that lacks one it would do nothing."""


def check_config(config: Any, settings: Settings) -> None:
    """Raises ConfigError: vLLM is configured in a way that was not tried, or cannot work.

    config: a VllmConfig.
    """
    found = list(_unfit(config, settings))
    if found:
        raise ConfigError(
            f"longspan.integrations.vllm.LongspanScheduler does not go with {'; nor with '.join(found)}. Leave that "
            "out, or --scheduler-cls"
        )


def check_hooks(scheduler: type) -> None:
    """Raises ConfigError: vLLM's scheduler has not all methods that ours builds on."""
    lacking = [name for name in HOOKS if not hasattr(scheduler, name)]
    if lacking:
        raise ConfigError(f"this vLLM's scheduler has no {', '.join(lacking)}: its version is one too many")


def _unfit(config: Any, settings: Settings) -> Iterator[str]:
    scheduling, parallel, model = config.scheduler_config, config.parallel_config, config.model_config
    has_log = settings.event_log is not None
    reasons = {
        "chunked prefill turned off (--no-enable-chunked-prefill, or a model that cannot)": (
            not scheduling.enable_chunked_prefill
        ),
        f"{model.runner_type} models, which generate nothing": model.runner_type != "generate",
        "encoder-decoder models": model.is_encoder_decoder,
        "diffusion models": getattr(model, "is_diffusion", False),
        "KV connectors (--kv-transfer-config, --kv-offloading-size)": config.kv_transfer_config is not None,
        "encoder connectors (--ec-transfer-config)": config.ec_transfer_config is not None,
        "pipeline parallelism": parallel.pipeline_parallel_size > 1,
        "data parallelism in lockstep, as of mixtures of experts": parallel.data_parallel_size > 1,
        "--prefill-schedule-interval": scheduling.prefill_schedule_interval > 1,
        "speculative decoding together with an event log, which has one token a step": (
            has_log and config.speculative_config is not None
        ),
    }
    return (what for what, is_so in reasons.items() if is_so)
