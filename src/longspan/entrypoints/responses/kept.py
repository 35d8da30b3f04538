"""What clients do with their responses afterwards: retrieve, cancel, delete, and list the input, as OpenAI has it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import msgspec
from fastapi import APIRouter, Request, Response

from longspan.entrypoints.openai.errors import ErrorAnswer, Refusal
from longspan.entrypoints.openai.openapi import answers as documented
from longspan.entrypoints.openai.openapi import struct_schema
from longspan.entrypoints.openai.quoting import quoted
from longspan.entrypoints.openai.tenants import owner_of_request
from longspan.entrypoints.responses.answering import Answering, Keeper
from longspan.entrypoints.responses.answers import DeletedResponse, ItemList, ResponseObject
from longspan.entrypoints.responses.background import Background
from longspan.entrypoints.responses.items import decode_items
from longspan.entrypoints.responses.pages import PARAMETERS, page
from longspan.entrypoints.responses.store import Stored
from longspan.errors import RequestError


@dataclass(frozen=True, slots=True)
class Kept:
    """The responses of one server, those that go on in the background, too. Everyone finds but their own."""

    keeper: Keeper
    background: Background

    def find(self, response_id: str) -> Answering | Stored:
        """Return one of whoever sent the request that is being answered. Raises Refusal (404)."""
        owner = owner_of_request()
        found = self.background.find(owner, response_id) or self.keeper.store.get(owner, response_id)
        if found is not None:
            return found
        message = f"there is no response {quoted(response_id)} here; {self.keeper.bounds}"
        raise Refusal(ErrorAnswer(404, message, "invalid_request_error", "response_id", "response_not_found"))

    def retrieve(self, response_id: str) -> bytes:
        """Return it as it is now."""
        found = self.find(response_id)
        return found.answer if isinstance(found, Stored) else msgspec.json.encode(found.response)

    async def cancel(self, response_id: str) -> bytes:
        """End it, and return it; one that has ended is what it was. Raises RequestError where its own request waits."""
        found = self.find(response_id)
        if isinstance(found, Answering):
            await self.background.cancel(found)
            return msgspec.json.encode(found.response)
        if not msgspec.json.decode(found.answer, type=ResponseObject).background:
            raise RequestError("only a response that was created with background: true can be cancelled",
                               param="response_id", code="invalid_value")  # fmt: skip
        return found.answer

    async def delete(self, response_id: str) -> DeletedResponse:
        """Forget it; one that goes on is ended."""
        found = self.find(response_id)
        if isinstance(found, Answering):
            await self.background.cancel(found)
        self.keeper.store.delete(owner_of_request(), response_id)
        return DeletedResponse(response_id)

    def list_input(self, response_id: str, query: Mapping[str, str]) -> ItemList:
        """Return a page of its request's own input."""
        found = self.find(response_id)
        if isinstance(found, Answering):
            return page(found.given, query)
        return page(decode_items(found.turn.items)[: found.turn.num_input], query)


def add_routes(router: APIRouter, kept: Kept) -> None:
    """Add the paths below /v1/responses."""
    described = documented(struct_schema(ResponseObject))

    @router.get("/v1/responses/{response_id}", responses=described)
    async def retrieve_response(response_id: str, request: Request) -> Response:
        if request.query_params.get("stream", "false") != "false":
            raise RequestError("stream is not supported: a response is not streamed again", param="stream",
                               code="unsupported_parameter")  # fmt: skip
        return _json(kept.retrieve(response_id))

    @router.post("/v1/responses/{response_id}/cancel", responses=described)
    async def cancel_response(response_id: str) -> Response:
        return _json(await kept.cancel(response_id))

    @router.delete("/v1/responses/{response_id}", responses=documented(struct_schema(DeletedResponse)))
    async def delete_response(response_id: str) -> Response:
        return _json(msgspec.json.encode(await kept.delete(response_id)))

    @router.get(
        "/v1/responses/{response_id}/input_items", responses=documented(struct_schema(ItemList)),
        openapi_extra={"parameters": PARAMETERS},
    )  # fmt: skip
    async def list_input_items(response_id: str, request: Request) -> Response:
        return _json(msgspec.json.encode(kept.list_input(response_id, request.query_params)))


def _json(body: bytes) -> Response:
    return Response(body, media_type="application/json")
