"""The key with which other boxes may use this node's API over TCP."""

from __future__ import annotations

import hmac
import os
from pathlib import Path

from starlette.datastructures import Headers

from meshmoe.core.errors import ConfigError, RequestError

KEY_VARIABLE = "MESHMOE_API_KEY"
KEY_CHARS_MIN = 16
KEY_CHARS_MAX = 512
OPEN_PATHS = frozenset({"/health", "/"})
"""Answered without a key: for whoever watches whether the node serves, and the page, which then asks for the key."""

OPEN_PREFIX = "/page/"
"""The page's files, which are the same at every node."""


def read_api_key(file: Path | None) -> str | None:
    """The key: the first line of ``file``, else ``$MESHMOE_API_KEY``, else none.

    It is never a flag of its own, because every user of a box can read the flags of its processes.

    Raises:
        ConfigError: The file cannot be read, or the key is too short to be safe.
    """
    where = f"--api-key-file {file}" if file is not None else f"${KEY_VARIABLE}"
    if file is not None:
        try:
            text = file.read_text(encoding="ascii")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not plain ASCII"
            raise ConfigError(f"{where}: cannot read it: {reason}") from None
        key = text.partition("\n")[0].strip()
    else:
        key = os.environ.get(KEY_VARIABLE, "")
        if not key:
            return None
    if not KEY_CHARS_MIN <= len(key) <= KEY_CHARS_MAX or not (key.isascii() and key.isprintable()):
        raise ConfigError(
            f"{where}: a key has {KEY_CHARS_MIN} to {KEY_CHARS_MAX} printable ASCII characters: make one with "
            "`openssl rand -hex 24`"
        )
    return key


def check_api_key(key: str, path: str, headers: Headers) -> None:
    """Refuse a request that does not bring the key.

    Raises:
        RequestError: 401, as OpenAI's clients expect it.
    """
    scheme, _, given = headers.get("authorization", "").partition(" ")
    good = scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), key.encode())
    if not good and path not in OPEN_PATHS and not path.startswith(OPEN_PREFIX):
        what = "the API key is wrong" if given else "no API key was given"
        raise RequestError(f"{what}: send `Authorization: Bearer KEY`", code="invalid_api_key", http_status=401)
