"""``GET /``: the topology page, from files of this package. It asks for nothing from elsewhere, and is not built.

The files lie in ``page_files/``; ``vendor/`` there holds Cytoscape.js with its licence, as its npm package has it.
"""

from __future__ import annotations

from functools import cache
from hashlib import sha256
from importlib import resources
from importlib.resources.abc import Traversable
from typing import NamedTuple

from starlette.requests import Request
from starlette.responses import Response

from meshmoe.core.errors import RequestError

_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
    "txt": "text/plain; charset=utf-8",
}

_HEADERS = {
    # Scripts only from files of this server; styles may also be set by scripts, which Cytoscape.js does.
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    # Another version of the node may answer at the same address tomorrow: ask, and take 304.
    "cache-control": "no-cache",
}


class _File(NamedTuple):
    content: bytes
    media_type: str
    digest: str


@cache
def _files() -> dict[str, _File]:
    """All files of the page by name, read once; what is not here is not served."""
    found: dict[str, _File] = {}

    def read(directory: Traversable, prefix: str) -> None:
        for entry in directory.iterdir():
            if entry.is_dir():
                read(entry, f"{prefix}{entry.name}/")
            elif (media_type := _TYPES.get(entry.name.rpartition(".")[2])) is not None:
                content = entry.read_bytes()
                found[prefix + entry.name] = _File(content, media_type, sha256(content).hexdigest()[:16])

    read(resources.files("meshmoe.api").joinpath("page_files"), "")
    return found


async def page(request: Request) -> Response:
    """Answer ``GET /``."""
    return _answer(request, "index.html")


async def page_file(request: Request) -> Response:
    """Answer ``GET /page/{name}``."""
    return _answer(request, request.path_params["name"])


def _answer(request: Request, name: str) -> Response:
    file = _files().get(name)
    if file is None:
        raise RequestError(f"{request.url.path} does not exist: the page is at /", code="unknown_url", http_status=404)
    tag = f'"{file.digest}"'
    headers = {**_HEADERS, "etag": tag}
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    return Response(file.content, media_type=file.media_type, headers=headers)
