"""What travels between the engine and its workers: plain data, msgpack on the wire. No torch.

Commands of one worker are carried out first in, first out.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from longspan.core.actions import FreeKV, MigrateKV, RunBatch
from longspan.worker.sampling_state import SampledToken, SamplingState
from longspan.worker_usage import WorkerUsage


class AllocateKV(msgspec.Struct, frozen=True, tag=True):
    """Make the KV pool; the first command, sent once all workers are ready."""

    num_tokens: int


class LoadVocabulary(msgspec.Struct, frozen=True, tag=True):
    """Read the tokenizer, for requests with a grammar; sent once, before any of them. Fields as in `Vocabulary`."""

    tokenizer_json: str
    eos_token_ids: tuple[int, ...]
    num_rows: int


class Scoring(msgspec.Struct, frozen=True):
    """Log-probabilities that are wanted of a segment's prompt tokens.

    next_ids: the tokens (int32, little endian) behind the segment's first, second, ..., if they are the prompt's.
    top: how many of the best at each.
    """

    next_ids: bytes
    top: int


class PromptScores(msgspec.Struct, frozen=True):
    """Log-probabilities of some of a prompt's tokens, side by side: positions, ranks and token ids int32, others fp32.

    top_*: of each position as many as were asked for, best first.
    """

    positions: bytes
    logprobs: bytes
    ranks: bytes
    top_ids: bytes
    top_logprobs: bytes


class Run(msgspec.Struct, frozen=True, tag=True):
    """Run a batch.

    token_ids: for each segment its tokens (int32, little endian); a segment without them is one token long and goes
        on from the token that this worker sampled last for the request.
    number: of this work among all batches and migrations, in the order in which every worker takes its own; by it
        peers know what belongs to it. oldest: the smallest number of work that may still become void.
    sampling: for each request that this worker begins to emit tokens of, how to sample them.
    prompt_tokens: for each segment with token_ids, how long the request's prompt is: some models' KV depends on it.
    scoring: for each segment whose prompt's log-probabilities are wanted, which.
    """

    batch: RunBatch
    token_ids: dict[str, bytes]
    sampling: dict[str, SamplingState]
    prompt_tokens: dict[str, int] = {}
    scoring: dict[str, Scoring] = {}
    number: int = 0
    oldest: int = 0


class Migrate(msgspec.Struct, frozen=True, tag=True):
    """Move KV; sent to the source and to the target. number: as in `Run`. The source keeps it until `Settle`."""

    action: MigrateKV
    number: int = 0


class Settle(msgspec.Struct, frozen=True, tag=True):
    """A migration is through at both ends, and will not become void: its source's slots are free from now on."""

    number: int


class Cancel(msgspec.Struct, frozen=True, tag=True):
    """Work of these numbers is void, since an instance that took part is lost. It goes before all that waits.

    What has yet to begin is not begun, what is being done is left, and what was done is undone: the slots that it took
    are free again, and how its requests are sampled is forgotten. A second time changes nothing.
    """

    numbers: tuple[int, ...]


class Link(msgspec.Struct, frozen=True, tag=True):
    """Exchange with an instance: its workers are new, or came in place of others.

    node: the machine that they are on. place: of shared memory there, for workers of the same machine.
    addresses: where its workers listen, in rank order, for those of others.
    """

    instance: int
    place: str
    node: int = 0
    addresses: tuple[tuple[str, int], ...] = ()


class Free(msgspec.Struct, frozen=True, tag=True):
    """Free KV of a residence."""

    action: FreeKV


class Forget(msgspec.Struct, frozen=True, tag=True):
    """Forget how a request's tokens are sampled."""

    request_id: str


class Stop(msgspec.Struct, frozen=True, tag=True):
    """End the worker."""


Command = AllocateKV | LoadVocabulary | Run | Migrate | Settle | Cancel | Link | Free | Forget | Stop


class Loading(msgspec.Struct, frozen=True, tag=True):
    """The progress of a worker with a step of its start. done, total: parts of its share; 0 of 0 is unknown."""

    step: Literal["kernels", "weights"]
    done: int = 0
    total: int = 0


class Ready(msgspec.Struct, frozen=True, tag=True):
    """The model is loaded. kv_tokens_fit: how many tokens of KV the device's free memory would take.

    processor: what the device calls itself. kernels: which of ours it runs, or whose instead. threads: on the CPU.
    quantization: what the weights are kept in, once `auto` is decided. pp_layers: of each pipeline stage.
    links_anew: whether it can go on with an instance's workers that come in place of others.
    place, address: where others meet it, see `Link`; no address where all workers are on one machine.
    """

    dtype: str
    device: str
    kv_tokens_fit: int
    processor: str
    kernels: str
    threads: int
    quantization: str
    pp_layers: tuple[int, ...]
    links_anew: bool = False
    place: str = ""
    address: tuple[str, int] | None = None


class KVAllocated(msgspec.Struct, frozen=True, tag=True):
    """The pool is there."""


class BatchDone(msgspec.Struct, frozen=True, tag=True):
    """This instance's part of a batch is done: its device has come to the end of it.

    tokens: what was sampled here, by request. model_s: seconds inside the model, on the device's clock; total_s: in the
        worker, on the host's.
    not_finite: requests that got no token here, since their logits are not finite. grammar_errors: and those of which
        their grammar cannot say what may follow, with the reason. prompt_scores: of what this instance computed.
    """

    batch_id: int
    instance: int
    tokens: dict[str, SampledToken]
    model_s: float
    total_s: float
    not_finite: tuple[str, ...] = ()
    grammar_errors: dict[str, str] = {}
    prompt_scores: dict[str, PromptScores] = {}


class Linked(msgspec.Struct, frozen=True, tag=True):
    """This worker exchanges with those of an instance that are new; or cannot, and why."""

    instance: int
    error: str = ""


class FirstStageDone(msgspec.Struct, frozen=True, tag=True):
    """This instance's first pipeline stage begins the last layer of its part of a batch, and is about to be free.

    What is sent to it now waits for it, not the other way round.
    """

    batch_id: int
    instance: int


class MigrationDone(msgspec.Struct, frozen=True, tag=True):
    """This instance's part of a migration is done."""

    migration_id: int
    instance: int


class WorkLeft(msgspec.Struct, frozen=True, tag=True):
    """This work was void: in place of its answer."""

    number: int


class Beat(msgspec.Struct, frozen=True, tag=True):
    """A sign of life. `progress` grows with every layer, and with the time that the worker computes."""

    progress: int
    usage: WorkerUsage = WorkerUsage()


class Log(msgspec.Struct, frozen=True, tag=True):
    """A line for the engine's log. level, logger: as in Python's logging."""

    level: int
    logger: str
    text: str


class Failed(msgspec.Struct, frozen=True, tag=True):
    """The worker met an error and ends."""

    message: str


Answer = FirstStageDone | BatchDone | MigrationDone | WorkLeft
Reply = Loading | Ready | KVAllocated | Linked | Answer | Beat | Log | Failed

_encoder = msgspec.msgpack.Encoder()
_commands = msgspec.msgpack.Decoder(Command)
_replies = msgspec.msgpack.Decoder(Reply)


def encode(message: Command | Reply) -> bytes:
    return _encoder.encode(message)


def decode_command(data: bytes) -> Command:
    command: Command = _commands.decode(data)
    return command


def decode_reply(data: bytes) -> Reply:
    reply: Reply = _replies.decode(data)
    return reply
