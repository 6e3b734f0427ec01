"""``GET /mesh/trace``: what this node's own requests were routed to lately, as a file that ``meshmoe plan`` reads."""

from __future__ import annotations

import io

import numpy as np
from starlette.requests import Request
from starlette.responses import Response

from meshmoe.api.service import ModelService
from meshmoe.core.errors import RequestError

WINDOW_TOKENS_MAX = 512


async def mesh_trace(request: Request) -> Response:
    """Answer with a numpy archive of one array, ``[windows, tokens, layers, top_k]``; ``window`` is its tokens."""
    service: ModelService = request.app.state.service
    text = request.query_params.get("window", "64")
    if not text.isdigit() or not 2 <= int(text) <= WINDOW_TOKENS_MAX:
        raise RequestError(f"window is from 2 to {WINDOW_TOKENS_MAX} tokens, not {text[:20]!r}", param="window")
    sets = service.routing(int(text))
    if len(sets) < 2:
        raise RequestError(f"this node has not written two windows of {text} tokens yet: ask it for text first")
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **{service.status().node: sets})
    return Response(buffer.getvalue(), media_type="application/octet-stream")
