"""What keeping weights in few bits costs in quality: perplexity of real text and distance from fp32.

Windows from all over each text, every token after the first predicted from those before it, through a worker's own
model, KV pool and attention. Each weight format runs a window in one piece, where kernels turn quants into bf16 once
for many rows, and in pieces of a few rows, where they multiply by the quants themselves, as a decode step does.

A rounded weight makes some tokens likelier and others less so, whence perplexity moves either way by chance: its change
has a standard error. The Kullback-Leibler divergence from fp32's distributions counts every move.

    python -m benchmarks.engine.quality [--texts DIR] [--windows 3] [--model smollm2-135m]

DIR: *.txt or *.txt.gz; by default the excerpt in tests/data.
"""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.common import arguments, save, say
from longspan.attention.elastic import ElasticAttention
from longspan.attention.layout import plan_layout, positions_of
from longspan.config import DType, Quantization
from longspan.core.actions import OWN, KVRange, RunBatch, Segment
from longspan.distributed.local import LocalTransport, LocalWorld
from longspan.distributed.tensor_parallel import SingleDevice
from longspan.engine.tokenizer import Tokenizer
from longspan.models.catalog import resolve_model
from longspan.worker.messages import AllocateKV
from longspan.worker.spec import WorkerSpec
from longspan.worker.worker import Worker

WINDOW = 2048  # tokens
COMPARED = 512  # tokens of each window whose distributions are compared: each has the whole vocabulary
FEW_ROWS = 16  # of a piece, so that kernels stream quants
SIDES: dict[str, tuple[DType, Quantization]] = {
    "fp32": ("float32", "none"),
    "bf16": ("bfloat16", "none"),
    "gguf": ("bfloat16", "gguf"),
    "int8": ("bfloat16", "int8"),
}


class Reading(NamedTuple):
    """What a model makes of a window: nats of every token but the first, and logits after the first COMPARED ones."""

    losses_T: Tensor
    logits_CV: Tensor


class Reader:
    """One worker with one weight format, as an engine would start it."""

    def __init__(self, model_path: str, dtype: DType, quantization: Quantization) -> None:
        spec = WorkerSpec(
            model_path=model_path, instance=0, tp_rank=0, num_instances=1, tp=1, dtype=dtype, device="cpu",
            threads=1, quantization=quantization,
        )  # fmt: skip
        self.transport = LocalTransport(LocalWorld(1, tp_size=1), 0)
        self.worker = Worker(spec, self.transport)
        self.worker.execute(AllocateKV(WINDOW))
        assert self.worker.runner is not None
        self.runner = self.worker.runner

    @torch.inference_mode()
    def read(self, tokens: Sequence[int], rows: int) -> Reading:
        """In pieces of so many rows."""
        losses, first = [], []
        for start in range(0, len(tokens), rows):
            stop = min(len(tokens), start + rows)
            logits_TV = self._logits(tokens, start, stop)
            following_T = torch.tensor(tokens[start + 1 : stop + 1])
            losses.append(F.cross_entropy(logits_TV[: len(following_T)], following_T, reduction="none"))
            first.append(logits_TV[: max(0, COMPARED - start)].clone())
        self.runner.pool.free(OWN)
        self.runner.forget("r")
        return Reading(torch.cat(losses), torch.cat(first))

    def _logits(self, tokens: Sequence[int], start: int, stop: int) -> Tensor:
        segment = Segment("r", start, stop - start, (0,), (KVRange(0, start, stop),), ((0, start),) if start else ())
        runner, scale = self.runner, self.worker.config.head_dim**-0.5
        layout = plan_layout(RunBatch(0, (0,), (segment,)), 0, runner.pool, self.worker.device)
        attention = ElasticAttention(layout, runner.pool, runner.backend, self.transport, lambda i: i, scale)
        return self.worker.model.forward(
            torch.tensor(tokens[start:stop]), torch.from_numpy(positions_of(layout)), attention, SingleDevice(),
            torch.arange(stop - start),
        )  # fmt: skip


def windows_of(text: str, tokenizer: Tokenizer, count: int) -> list[list[int]]:
    """Evenly spread, none over another. Characters are cut first: a book takes long to tokenise."""
    part = len(text) // count
    windows = [tokenizer.encode(text[i * part : i * part + min(part, 8 * WINDOW)])[:WINDOW] for i in range(count)]
    assert all(len(window) == WINDOW for window in windows), "the text is too short for so many windows"
    return windows


def read_texts(folder: Path) -> dict[str, str]:
    paths = sorted([*folder.glob("*.txt"), *folder.glob("*.txt.gz")])
    return {
        path.name.split(".")[0]: (gzip.open(path, "rt") if path.suffix == ".gz" else path.open()).read()
        for path in paths
    }


def measure(model_path: str, texts: dict[str, list[list[int]]]) -> dict[str, dict[str, Any]]:
    """Figures of each text by side, fp32 first. One side after the other: memory is for one model."""
    figures: dict[str, dict[str, Any]] = {name: {} for name in texts}
    references: dict[str, list[Reading]] = {}
    for side, (dtype, quantization) in SIDES.items():
        reader = Reader(model_path, dtype, quantization)
        for rows in (WINDOW,) if side == "fp32" else (WINDOW, FEW_ROWS):
            label = side if rows == WINDOW else f"{side}, {rows} rows at a time"
            for name, windows in texts.items():
                readings = [reader.read(window, rows) for window in windows]
                found = figures[name][label] = compared(readings, references.setdefault(name, readings))
                say(f"{name}, {label}: perplexity {found['perplexity']:.3f}, {found['over_fp32']:.5f} of fp32's "
                    f"(+- {found['standard_error']:.5f}), KL {found['kl_from_fp32']:.2e} nats")  # fmt: skip
    return figures


def compared(readings: list[Reading], references: list[Reading]) -> dict[str, float]:
    """standard_error: of over_fp32. same_top_token: the share of positions."""
    losses_T, reference_T = (torch.cat([r.losses_T for r in some]) for some in (readings, references))
    more_T = losses_T - reference_T
    divergence, same = [], []
    for mine, theirs in zip(readings, references, strict=True):
        logprobs_CV, exact_CV = mine.logits_CV.log_softmax(-1), theirs.logits_CV.log_softmax(-1)
        divergence.append(F.kl_div(logprobs_CV, exact_CV, reduction="none", log_target=True).sum(-1))
        same.append(logprobs_CV.argmax(-1) == exact_CV.argmax(-1))
    return {
        "perplexity": losses_T.mean().exp().item(),
        "over_fp32": more_T.mean().exp().item(),
        "standard_error": more_T.std().item() / len(more_T) ** 0.5,
        "kl_from_fp32": torch.cat(divergence).mean().item(),
        "same_top_token": torch.cat(same).float().mean().item(),
    }


def main() -> None:
    default = Path(__file__).parents[2] / "tests" / "data"
    args = arguments(__doc__ or "", [
        ("texts", "", "a folder of texts; empty: the excerpt in tests/data"),
        ("windows", 3, "of each text"),
        ("model", "smollm2-135m", "a .gguf model"),
    ])  # fmt: skip
    model = resolve_model(args.model)
    tokenizer = Tokenizer.load(model)
    texts = {
        name: windows_of(text, tokenizer, args.windows)
        for name, text in read_texts(Path(args.texts) if args.texts else default).items()
    }
    results = measure(str(model.path), texts)
    save("quality", {"model": model.name, "window": WINDOW, "windows": args.windows, "texts": results})


if __name__ == "__main__":
    main()
