"""What is being served, as cost models and their files see it."""

from __future__ import annotations

import os

from longspan.config import EngineConfig
from longspan.executor.base import DeviceInfo
from longspan.models.config import ModelConfig
from longspan.sib import Deployment


def describe_deployment(config: EngineConfig, model_name: str, model: ModelConfig, device: DeviceInfo) -> Deployment:
    return Deployment(
        model=model_name,
        architecture=model.architecture,
        num_layers=model.num_layers,
        hidden_size=model.hidden_size,
        intermediate_size=model.intermediate_size,
        num_heads=model.num_heads,
        num_kv_heads=model.num_kv_heads,
        head_dim=model.head_dim,
        vocab_size=model.vocab_size,
        quantization=device.quantization,
        dtype=device.dtype,
        instances=config.num_instances,
        tp=config.tp,
        pp=config.num_stages,
        executor=config.executor,
        device=device.device.partition(":")[0],
        processor=device.processor,
        cores=len(os.sched_getaffinity(0)),
        kernels=device.kernels,
        threads_per_device=device.threads,
    )
