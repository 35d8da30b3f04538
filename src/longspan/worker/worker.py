"""A worker: one device of one instance. Takes commands first in, first out, and answers them."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import torch

from longspan.attention.choice import backend_for
from longspan.distributed.across_hosts import AcrossHostsTransport
from longspan.distributed.shared_memory import SharedMemoryTransport
from longspan.distributed.stream import Event, Stream, stream_on
from longspan.distributed.tensor_parallel import SingleDevice, TensorParallelGroup
from longspan.distributed.transport import SoleDevice, Transport
from longspan.models.config import ModelConfig, load_model_config
from longspan.models.registry import model_class
from longspan.models.sharding import TensorParallelShard
from longspan.models.weights import open_weights
from longspan.native.library import must_be_built
from longspan.native.work import CurrentWork, WorkVoidError
from longspan.pipeline import PipelineStage
from longspan.worker.device import (
    keep_freed_memory,
    kernels_name,
    memory_for_kv,
    processor_name,
    resolve_device,
    resolve_dtype,
    resolve_quantization,
    workers_on_device,
)
from longspan.worker.kv_pool import KVPool
from longspan.worker.matcher import GrammarError, shared_vocabulary
from longspan.worker.messages import (
    AllocateKV,
    Cancel,
    Command,
    FirstStageDone,
    Forget,
    Free,
    KVAllocated,
    Link,
    Linked,
    Loading,
    LoadVocabulary,
    Migrate,
    MigrationDone,
    Ready,
    Reply,
    Run,
    Settle,
    WorkLeft,
)
from longspan.worker.model_runner import Model, ModelRunner
from longspan.worker.pinning import threads_of
from longspan.worker.spec import WorkerSpec
from longspan.worker.unsettled import UnsettledWork
from longspan.worker_usage import WorkerUsage

_NO_MEMORY = ("can't allocate memory", "Cannot allocate memory", "out of memory")  # torch, mmap, CUDA


class Progress:
    """A number that grows while the thread that made it works: by layers that its device has done, and where that is
    the host itself, by the thread's processor time. A host that spins while it waits for its device shows none.

    Another thread may read it; one that stands still for long belongs to a worker that hangs.
    """

    def __init__(self, stream: Stream) -> None:
        self.layers = 0
        self._stream = stream
        self._under_way: deque[Event] = deque()
        self._counting = threading.Lock()
        self._clock = time.pthread_getcpuclockid(threading.get_ident())

    def step(self) -> None:
        self._under_way.append(self._stream.record())
        self._count_passed()

    def value(self) -> int:
        self._count_passed()
        return self.layers + (int(10 * self.cpu_s()) if self._stream.host_computes else 0)

    def cpu_s(self) -> float:
        """Return the thread's processor time, seconds."""
        return time.clock_gettime(self._clock)

    def _count_passed(self) -> None:
        with self._counting:
            while self._under_way and self._under_way[0].done():
                self._under_way.popleft()
                self.layers += 1


class Worker:
    """Loads its share of the model, then executes commands.

    model: a share that another thread of this process has loaded already, to use together with it.
    only_layers: to load no more than these.
    on_loading: hears how far the loading is.
    stream: of the thread that makes the worker, which is the one that works; None: a new one.
    tell: takes what the engine is to know while a command is still being carried out.
    work: what the worker is at, which another thread may declare void.
    """

    def __init__(
        self,
        spec: WorkerSpec,
        transport: Transport,
        tp: TensorParallelGroup | None = None,
        model: Model | None = None,
        only_layers: range | None = None,
        on_loading: Callable[[Loading], None] = lambda loading: None,
        stream: Stream | None = None,
        tell: Callable[[Reply], None] = lambda reply: None,
        work: CurrentWork | None = None,
    ) -> None:
        torch.set_num_threads(threads_of(spec, len(os.sched_getaffinity(0))))
        keep_freed_memory()
        self.spec = spec
        self.transport = transport
        self.work = work or CurrentWork()
        self.tell = tell
        self.tp = tp or SingleDevice()
        self.device = resolve_device(spec)
        self.stream = stream or stream_on(self.device)
        self.stream.enter()
        self.progress = Progress(self.stream)
        self.busy_s = 0.0
        if self.device.type == "cpu" and must_be_built():
            on_loading(Loading("kernels"))
        self.dtype = resolve_dtype(spec.dtype, self.device)
        is_gguf = Path(spec.model_path).is_file()
        self.weight_format = resolve_quantization(spec.quantization, self.device, self.dtype, is_gguf=is_gguf)
        self.config: ModelConfig = load_model_config(spec.model_path, spec.rope_scaling)
        self.shard = TensorParallelShard.of(self.config, spec.tp_rank, spec.tp)
        layers = (self.config.num_layers,) if spec.pp_layers is None else spec.pp_layers
        self.stage = PipelineStage(only_layers) if only_layers else PipelineStage.of(spec.stage, layers)
        self.model: Model = model or self._load_model(on_loading)
        self.stream.record().wait()  # other threads may use the weights, on streams of their own
        self.runner: ModelRunner | None = None
        self.unsettled: UnsettledWork | None = None
        self._has_told = False  # of the present batch, that its first stage is free

    def _load_model(self, on_loading: Callable[[Loading], None]) -> Model:
        source = open_weights(self.spec.model_path, self.config)
        family = model_class(self.config.architecture)
        return family.load(
            self.config, source, self.shard, self.dtype, self.device, self.weight_format, self.stage,
            lambda done, total: on_loading(Loading("weights", done, total)),
        )  # fmt: skip

    def ready(self) -> Ready:
        """Return what the worker found out about its device."""
        per_token = self.config.kv_bytes_per_token(self.dtype.itemsize, self.shard.num_kv_heads, len(self.stage.layers))
        return Ready(
            dtype=str(self.dtype).removeprefix("torch."),
            device=str(self.device),
            kv_tokens_fit=memory_for_kv(self.device, workers_on_device(self.spec, self.device)) // per_token,
            processor=processor_name(self.device),
            kernels=kernels_name(self.device),
            threads=torch.get_num_threads(),
            quantization=self.weight_format,
            pp_layers=self.spec.pp_layers or (self.config.num_layers,),
            links_anew=isinstance(self.transport, SharedMemoryTransport | SoleDevice),
        )

    @torch.inference_mode()
    def execute(self, command: Command) -> Reply | None:
        """Carry out one command. One device of an instance answers for all; see `WorkerSpec.answers`.

        Of a batch the first of several stages tells before it is done with it, and returns None.
        """
        begun = time.monotonic()
        reply = self._carry_out(command)
        self.busy_s += time.monotonic() - begun
        return reply if isinstance(reply, KVAllocated | Linked) or self.spec.answers(command) else None

    def _carry_out(self, command: Command) -> Reply | None:
        match command:
            case AllocateKV(num_tokens):
                self.runner = self._make_runner(num_tokens)
                self.unsettled = UnsettledWork(self.runner)
                return KVAllocated()
            case LoadVocabulary(tokenizer_json, eos_token_ids, num_rows):
                if self.stage.is_last:
                    with suppress(GrammarError):  # what tries grammars out says so, and refuses each
                        self._ready_runner.vocabulary = shared_vocabulary(tokenizer_json, eos_token_ids, num_rows)
                return None
            case Run() | Migrate():
                return self._work_on(command)
            case Settle(number):
                self._unsettled_work.settle(number)
                return None
            case Cancel(numbers):
                self._unsettled_work.undo(numbers)
                self.work.forget(numbers)
                return None
            case Link():
                return Linked(command.instance, self._link(command))
            case Free(action):
                self._ready_runner.free(action)
                return None
            case Forget(request_id):
                self._ready_runner.forget(request_id)
                return None
            case _:
                raise AssertionError(f"unknown command {command!r}")

    def _work_on(self, command: Run | Migrate) -> Reply | None:
        """Do it, unless it is void; where it becomes so meanwhile, take back what has been done."""
        if not self.work.begin(command.number):
            return WorkLeft(command.number)
        if isinstance(self.transport, AcrossHostsTransport):
            self.transport.take_callers()
        unsettled, self._has_told = self._unsettled_work, False
        try:
            done = self._do(command)
        except WorkVoidError:
            if isinstance(self.transport, SharedMemoryTransport):
                self.transport.drop()
            unsettled.leave(command)
            return None if self._has_told else WorkLeft(command.number)
        finally:
            self.work.end()
        unsettled.add(command)
        return done

    def _do(self, command: Run | Migrate) -> Reply | None:
        if isinstance(command, Migrate):
            self._ready_runner.migrate(command.action)
            return MigrationDone(command.action.migration_id, self.spec.instance)
        done = self._ready_runner.run(command, on_last_layer=partial(self._tell_free, command))
        return done if self.stage.is_last else None

    def _link(self, link: Link) -> str:
        """Returns why that cannot be; empty where it can."""
        assert isinstance(self.transport, SharedMemoryTransport), "the engine asks whether it can be done"
        devices = self.spec.pp * self.spec.tp
        for number, rank in enumerate(range(link.instance * devices, (link.instance + 1) * devices)):
            if self.spec.host is None or link.node == self.spec.host.node:
                self.transport.link(link.place, rank)
                continue
            assert isinstance(self.transport, AcrossHostsTransport), "it has a host"
            try:
                self.transport.call(link.addresses[number], rank)
            except OSError as error:
                host, port = link.addresses[number]
                return f"{self.spec.name} on {self.spec.host.address} does not reach {host}, port {port}: {error}"
        return ""

    def _on_layer(self) -> None:
        self.work.check()
        self.progress.step()

    def usage(self) -> WorkerUsage:
        """Return its own figures, of its process; any thread may ask."""
        return self._usage(time.process_time())

    def thread_usage(self) -> WorkerUsage:
        """Return the same where it is one thread of several."""
        return self._usage(self.progress.cpu_s())

    def _usage(self, cpu_s: float) -> WorkerUsage:
        used = 0 if self.runner is None else self.runner.pool.num_used
        return WorkerUsage(self.spec.instance, self.spec.rank, cpu_s, resident_bytes(), self.busy_s, used)

    def _tell_free(self, command: Run) -> None:
        """The next batch is decided on, and comes, during the last layer: the stage need not wait for it."""
        if not self.stage.is_last and self.spec.answers(command):
            self._has_told = True
            self.tell(FirstStageDone(command.batch.batch_id, self.spec.instance))

    @property
    def _ready_runner(self) -> ModelRunner:
        assert self.runner is not None, "AllocateKV comes first"
        return self.runner

    @property
    def _unsettled_work(self) -> UnsettledWork:
        assert self.unsettled is not None, "AllocateKV comes first"
        return self.unsettled

    def _make_runner(self, num_tokens: int) -> ModelRunner:
        config, spec = self.config, self.spec
        pool = KVPool(
            len(self.stage.layers), self.shard.num_kv_heads, num_tokens, config.head_dim, self.dtype, self.device
        )
        return ModelRunner(
            self.model,
            pool,
            backend_for(self.device, self.dtype),
            self.transport,
            self.tp,
            spec.instance,
            rank_of=lambda instance: spec.rank_at(instance, spec.stage),
            previous=None if self.stage.is_first else spec.rank_at(spec.instance, spec.stage - 1),
            next=None if self.stage.is_last else spec.rank_at(spec.instance, spec.stage + 1),
            on_progress=self._on_layer,
            stream=self.stream,
        )


def resident_bytes() -> int:
    """Return this process' resident memory; 0 where nobody says."""
    try:
        pages = Path("/proc/self/statm").read_text().split()[1]
    except OSError:
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def failure_message(spec: WorkerSpec, error: BaseException) -> str:
    """Return what the engine says when this worker ends by an error."""
    message = f"{spec.name} failed: {type(error).__name__}: {str(error) or 'no message'}"
    if isinstance(error, MemoryError) or any(sign in str(error) for sign in _NO_MEMORY):
        message += "; use fewer --kv-tokens or --instances, a smaller model, or --quantization int8"
    return message
