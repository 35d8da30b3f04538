"""What readers get of the tokens that come: text, log-probabilities, or why there is no token."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from longspan.core.events import TokenOutput
from longspan.engine.detokenizer import Detokenizer
from longspan.engine.in_flight import RunningBatch
from longspan.engine.request import EngineRequest
from longspan.errors import LongspanError, ModelOutputError, RequestError, RequestFailedError
from longspan.outputs import PositionLogprobs, RequestOutput, TokenLogprob
from longspan.worker.messages import BatchDone
from longspan.worker.sampling_state import SampledLogprobs, SampledToken

logger = logging.getLogger(__name__)


class OutputMaker:
    """Makes output of tokens. num_bad_logits: requests whose logits were not finite."""

    def __init__(self, detokenizer: Detokenizer) -> None:
        self._detokenizer = detokenizer
        self.num_bad_logits = 0

    def of_batch(
        self, running: RunningBatch, requests: dict[str, EngineRequest], now: float
    ) -> tuple[list[TokenOutput], list[tuple[EngineRequest, RequestOutput | LongspanError]]]:
        """Return what the scheduler is told of each segment that emits, and what readers are.

        requests: those that are alive; who ends with it is taken out.
        """
        outputs: list[TokenOutput] = []
        news: list[tuple[EngineRequest, RequestOutput | LongspanError]] = []
        for segment in running.batch.segments:
            if not segment.emits:
                continue
            request = requests.get(segment.request_id)
            if request is None:  # aborted, or ended with the batch before
                outputs.append(TokenOutput(segment.request_id))
                continue
            item = self._output_of(request, running, now)
            news.append((request, item))
            if isinstance(item, LongspanError):
                del requests[request.request_id]
                outputs.append(TokenOutput(segment.request_id, "abort"))
                continue
            if item.finished:
                del requests[request.request_id]
            keys = b"" if item.finished else request.keys_of(running.tokens[segment.request_id].token_id)
            outputs.append(TokenOutput(segment.request_id, item.finish_reason, keys))
        return outputs, news

    def _output_of(self, request: EngineRequest, running: RunningBatch, now: float) -> RequestOutput | LongspanError:
        if (error := self._why_no_token(request, running)) is not None:
            request.times.finished = now
            return error
        token = running.tokens[request.request_id]
        try:
            return self._of_token(request, token, now)
        except Exception as error:  # of this request's text or log probabilities: the others have their own
            logger.exception(
                "request %s: its output cannot be made of token %s", request.request_id, token,
                extra=request.log_fields(),
            )  # fmt: skip
            return RequestFailedError(f"the server failed on this answer: {type(error).__name__}")

    def _of_token(self, request: EngineRequest, token: SampledToken, now: float) -> RequestOutput:
        """Add a token to its request, which may end with it."""
        request.output_token_ids.append(token.token_id)
        if request.times.first_token is None:
            request.times.first_token = now
        request.times.last_token = now
        delta = request.processor.push(token.token_id)
        if delta.finish_reason is not None:
            request.times.finished = now
        return request.output(
            token_ids=(token.token_id,),
            text=delta.text,
            logprobs=self._logprobs(token.token_id, token.logprobs, delta.text_offset) if token.logprobs else None,
            finish_reason=delta.finish_reason,
            stop_reason=delta.stop_reason,
        )

    def _why_no_token(self, request: EngineRequest, running: RunningBatch) -> LongspanError | None:
        """Return why the batch brings the request none, with which it ends: its logits are not finite, or its grammar
        does not say what may follow. None: there is one."""
        why = running.grammar_errors.get(request.request_id)
        if why is None and request.request_id not in running.not_finite:
            return None
        if why is not None:
            return RequestError(
                f"structured_outputs: what may follow token {len(request.output_token_ids)} of the answer cannot be "
                f"said within the limits of grammars: {why}",
                param="structured_outputs", code="invalid_grammar",
            )  # fmt: skip
        self.num_bad_logits += 1
        message = (
            f"the model's logits for token {len(request.output_token_ids) + 1} of the answer are not finite, so none "
            "can be chosen; other prompts are served as before (if it happens often, the weights are damaged, or need "
            "--dtype float32)"
        )
        logger.warning("request %s: %s", request.request_id, message, extra=request.log_fields())
        return ModelOutputError(message)

    def _logprobs(self, token_id: int, sampled: SampledLogprobs, text_offset: int) -> tuple[PositionLogprobs, ...]:
        raw = self._detokenizer.token_bytes
        chosen = TokenLogprob(token_id, raw(token_id), sampled.logprob, sampled.rank)
        best = zip(sampled.top_token_ids, sampled.top_logprobs, strict=True)
        top = tuple(TokenLogprob(i, raw(i), logprob, rank) for rank, (i, logprob) in enumerate(best, start=1))
        return (PositionLogprobs(chosen, top, text_offset),)


def take_scores(requests: Mapping[str, EngineRequest], done: BatchDone) -> None:
    """Keep the log-probabilities of prompts' tokens that an instance has found."""
    for request_id, scores in done.prompt_scores.items():
        request = requests.get(request_id)
        if request is not None and request.prompt_logprobs is not None:
            request.prompt_logprobs.add(scores)
