"""Runs the API of a service in a thread of its own, so that ordinary blocking clients can be tested against it."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest
import trio

from meshmoe.api import server
from meshmoe.api.cause import cause
from meshmoe.api.server import ApiAddresses, serve_api

Result = TypeVar("Result")


class Served:
    """A context manager: inside, the API answers at ``path``."""

    def __init__(
        self,
        service: Any,
        path: Path,
        http: tuple[str, int] | None = None,
        opened: Callable[[], AbstractAsyncContextManager[Any]] = nullcontext,
        api_key: str | None = None,
    ) -> None:
        self.service = service
        self.path = path
        self.addresses: ApiAddresses | None = None
        self.error: BaseException | None = None
        self._http = http
        self._opened = opened
        self._api_key = api_key
        self._started: queue.Queue[Any] = queue.Queue()
        self._thread = threading.Thread(target=self._run)
        self._token: trio.lowlevel.TrioToken | None = None
        self._scope = trio.CancelScope()

    def _run(self) -> None:
        try:
            trio.run(self._main)
        except BaseException as group:
            self.error = cause(group)
            self._started.put(self.error)

    async def _main(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        async with self._opened() as opened:
            if opened is not None:
                self.service = opened
            with self._scope:
                async with trio.open_nursery() as nursery:
                    self.addresses = await nursery.start(
                        partial(serve_api, self.service, self.path, self._http, api_key=self._api_key)
                    )
                    self._started.put(None)

    def __enter__(self) -> Served:
        self._thread.start()
        error = self._started.get(timeout=60)
        if error is not None:
            self._thread.join()
            raise error
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def stop(self) -> float:
        """Cancel the server; returns the seconds that it took."""
        begun_s = time.monotonic()
        if self._thread.is_alive():
            assert self._token is not None
            self._token.run_sync_soon(self._scope.cancel)
        self._thread.join(timeout=60)
        assert not self._thread.is_alive(), "the server does not stop"
        if self.error is not None:
            raise self.error
        return time.monotonic() - begun_s

    def stops_at_once(self) -> bool:
        """Whether it stops without its grace, which is long here: so slowness is not taken for waiting."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(server, "STOP_GRACE_S", 50.0)
            return self.stop() < 40

    def call(self, function: Callable[[], Result]) -> Result:
        """Run ``function`` in the server's thread."""
        return trio.from_thread.run_sync(function, trio_token=self._token)

    def client(self, **options: Any) -> httpx.Client:
        return httpx.Client(
            transport=httpx.HTTPTransport(uds=str(self.path)), base_url="http://localhost", timeout=30, **options
        )

    def wait_until(self, condition: Callable[[], bool], timeout_s: float = 30.0) -> float:
        """Wait for ``condition``; returns the seconds that it took."""
        begun_s = time.monotonic()
        while not condition():
            assert time.monotonic() - begun_s < timeout_s, "it does not come about"
            time.sleep(0.005)
        return time.monotonic() - begun_s


def events(response: httpx.Response) -> list[str]:
    """The data of a response's server-sent events."""
    return [line.removeprefix("data: ") for line in response.iter_lines() if line]
