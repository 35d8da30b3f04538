"""GET /v1/models, /v1/models/{id}."""

from __future__ import annotations

import msgspec
from fastapi import APIRouter, Response

from longspan.entrypoints.openai.answers import Model, ModelList
from longspan.entrypoints.openai.context import Context
from longspan.entrypoints.openai.errors import ModelNotFoundError
from longspan.entrypoints.openai.openapi import answers, struct_schema
from longspan.entrypoints.openai.quoting import quoted


def models_router(context: Context) -> APIRouter:
    router = APIRouter()
    engine = context.engine
    served = Model(engine.model_name, context.started, engine.config.model, engine.request_limit)

    @router.get("/v1/models", responses=answers(struct_schema(ModelList)))
    async def list_models() -> Response:
        return Response(msgspec.json.encode(ModelList([served])), media_type="application/json")

    @router.get("/v1/models/{model:path}", responses=answers(struct_schema(Model)))
    async def retrieve_model(model: str) -> Response:
        if model != served.id:
            raise ModelNotFoundError(
                f"the model {quoted(model)} does not exist; this server has {served.id!r}", param="model"
            )
        return Response(msgspec.json.encode(served), media_type="application/json")

    return router
