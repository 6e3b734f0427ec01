"""Who belongs to the mesh: tokens, expulsion, rotation. On the Unix socket only, whose file says who may."""

from __future__ import annotations

from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from meshmoe.api.errors import JsonResponse
from meshmoe.core.errors import RequestError
from meshmoe.node.mesh_keeper import MeshKeeper

LIFETIME_S_MAX = 10 * 365 * 24 * 3600

Body = TypeVar("Body")


class NewTokenBody(msgspec.Struct, forbid_unknown_fields=True):
    """Body of ``POST /mesh/tokens``; a lifetime of 0 is for ever."""

    lifetime_s: Annotated[int, Meta(ge=0, le=LIFETIME_S_MAX)] = 24 * 3600
    label: Annotated[str, Meta(max_length=64)] = ""


class ExpelBody(msgspec.Struct, forbid_unknown_fields=True):
    """Body of ``POST /mesh/expel``."""

    node: Annotated[str, Meta(max_length=63)]


async def tokens(request: Request) -> JsonResponse:
    """Answer ``GET`` and ``POST /mesh/tokens``."""
    keeper = _keeper(request)
    if request.method == "POST":
        body = await _body(request, NewTokenBody)
        return JsonResponse(keeper.new_token(body.lifetime_s, body.label))
    return JsonResponse({"tokens": keeper.tokens()})


async def one_token(request: Request) -> Response:
    """Answer ``DELETE /mesh/tokens/{id}``."""
    _keeper(request).revoke_token(request.path_params["id"])
    return JsonResponse({"revoked": True})


async def rotate(request: Request) -> JsonResponse:
    """Answer ``POST /mesh/rotate``."""
    _keeper(request).rotate_secret()
    return JsonResponse({"rotated": True})


async def expel(request: Request) -> JsonResponse:
    """Answer ``POST /mesh/expel``."""
    body = await _body(request, ExpelBody)
    await _keeper(request).expel(body.node)
    return JsonResponse({"expelled": body.node})


def _keeper(request: Request) -> MeshKeeper:
    if request.scope["state"]["over_tcp"]:
        raise RequestError(
            "who belongs to the mesh is decided on the Unix socket only", code="socket_only", http_status=403
        )
    keeper: MeshKeeper = request.app.state.service.keeper()
    return keeper


async def _body(request: Request, kind: type[Body]) -> Body:
    try:
        return msgspec.json.decode(await request.body() or b"{}", type=kind)
    except msgspec.MsgspecError as error:
        raise RequestError(f"the body is not right: {error}") from None
