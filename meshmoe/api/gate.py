"""What every HTTP request passes before it is routed: who may ask, how much, and how long it may take to ask.

- Over TCP, Host must name this machine and Origin, if there is one, must be this server: a web page that a user has
  open can neither reach the API through a name of its own (DNS rebinding) nor post to it. The Unix socket needs no
  such check, because browsers cannot open one and the file's mode says who may.
- Over TCP with an API key, the key must be there; then any Host will do, since a page of somebody else has no key.
- The body is read in full here, within a bound and a deadline. That also keeps hypercorn's queue of body chunks empty:
  a handler that answers without reading would otherwise leave the connection stuck behind it.
- Whatever goes wrong further in, and was not answered there, ends here: one line in the log.
"""

from __future__ import annotations

import logging
import os
import re

import trio
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from meshmoe.api.api_key import check_api_key
from meshmoe.api.cause import cause
from meshmoe.api.errors import ClientGoneError, error_response
from meshmoe.api.loopback import is_loopback_name
from meshmoe.core.errors import MeshmoeError, RequestError

BODY_BYTES_MAX = 8 << 20
BODY_READ_S_MAX = 30.0
DISCARD_S_MAX = 5.0

_HOST = re.compile(r"(?:\[(?P<bracketed>[0-9a-fA-F:.]+)\]|(?P<plain>[^@:/\[\]]+))(?::\d*)?\Z")

log = logging.getLogger("meshmoe.api")


class Gate:
    """The outermost ASGI application.

    Args:
        app: What is behind it.
        api_key: What requests over TCP must bring; None asks for none.
    """

    def __init__(self, app: ASGIApp, api_key: str | None = None) -> None:
        self._app = app
        self._api_key = api_key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or refuse it."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1000})
            return
        if scope["type"] != "http":
            return
        try:
            await self._serve(scope, receive, send)
        except ClientGoneError:
            pass
        except Exception as group:
            error = cause(group)
            # What is meant for people has been told to them already.
            if not isinstance(error, MeshmoeError | ClientGoneError):
                log.error(
                    "%s %s: %s: %s",
                    scope["method"],
                    scope["path"],
                    type(error).__name__,
                    error,
                    exc_info=error if os.environ.get("MESHMOE_DEBUG") else None,
                )

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            _check_version(scope)
            if scope["state"]["over_tcp"]:
                headers = Headers(scope=scope)
                if self._api_key is not None:
                    check_api_key(self._api_key, scope["path"], headers)
                check_browser_headers(headers, any_host=self._api_key is not None)
            body = await _read_body(scope, receive)
        except RequestError as error:
            await _refuse(error, scope, receive, send)
            return
        replayed = False

        async def receive_replayed() -> Message:
            nonlocal replayed
            if replayed:
                return await receive()
            replayed = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, receive_replayed, send)


def _check_version(scope: Scope) -> None:
    if scope["http_version"] not in ("1.0", "1.1"):
        raise RequestError(f"HTTP/{scope['http_version']} is not served here: use HTTP/1.1", http_status=505)


def check_browser_headers(headers: Headers, *, any_host: bool = False) -> None:
    """Refuse what only a web page of somebody else would send.

    Args:
        headers: Of the request.
        any_host: Whether Host may name anything.

    Raises:
        RequestError: 403; Host is not this machine, or the request was made by a page from elsewhere.
    """
    host = headers.get("host", "")
    if not any_host and not is_loopback_name(_host_name(host)):
        raise RequestError(
            f"the Host header {host!r} does not name this machine: use localhost or 127.0.0.1",
            code="forbidden_host",
            http_status=403,
        )
    origin = headers.get("origin")
    foreign = headers.get("sec-fetch-site") in ("cross-site", "same-site")
    if foreign or (origin is not None and origin.lower() != f"http://{host.lower()}"):
        raise RequestError(
            f"requests from web pages are refused (Origin {origin!r})", code="forbidden_origin", http_status=403
        )


def _host_name(host: str) -> str:
    """The name in a Host header, without the port; empty if there is none, or if it is no host at all."""
    match = _HOST.match(host)
    return (match["bracketed"] or match["plain"]) if match else ""


async def _read_body(scope: Scope, receive: Receive) -> bytes:
    too_large = RequestError(
        f"the body is larger than {BODY_BYTES_MAX >> 20} MiB", code="body_too_large", http_status=413
    )
    declared = Headers(scope=scope).get("content-length", "0")
    if declared.isdecimal() and int(declared) > BODY_BYTES_MAX:
        raise too_large
    body = bytearray()
    with trio.move_on_after(BODY_READ_S_MAX):
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientGoneError
            body += message.get("body", b"")
            if len(body) > BODY_BYTES_MAX:
                raise too_large
            if not message.get("more_body", False):
                return bytes(body)
    raise RequestError(
        f"the body did not arrive within {BODY_READ_S_MAX:.0f} s", code="request_timeout", http_status=408
    )


async def _refuse(error: RequestError, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with ``error``, then take in what is left of the body for a while, so that the client sees the answer.

    A server that closes with unread data makes the kernel reset the connection, and the answer is lost. The response
    is complete for the client by its Content-Length before this coroutine says that it is.
    """
    response = error_response(error, {"connection": "close"})
    await send({"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers})
    await send({"type": "http.response.body", "body": bytes(response.body), "more_body": True})
    message: Message = {"type": "http.request", "more_body": True}
    with trio.move_on_after(DISCARD_S_MAX):
        while message.get("more_body", False):
            message = await receive()
    scope["state"]["connection"].abort()
    # hypercorn's queue may be full of body; its last message needs room.
    while message["type"] != "http.disconnect":
        message = await receive()
