"""One status a second for everybody who watches.

A status costs the node's loop a millisecond to make and to encode, so it is made once and shared: watchers get the same
bytes. What they get after the first whole status are *patches*: the members that have changed, objects within objects
likewise, lists whole (RFC 7386, but that null is a value: a status never loses a member). A watcher that reads more
slowly than statuses are made misses some, and then gets a whole one: its queue is one event long, and no watcher costs
the node more than that.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import trio

from meshmoe.api.json_lines import encode_line
from meshmoe.api.service import ModelService
from meshmoe.core.errors import OverloadedError
from meshmoe.node.status import NodeStatus

INTERVAL_S = 1.0
SHARED_S = 0.1
"""Whoever asks for a status gets one that is at most so old."""

WATCHERS_MAX = 256


class Watcher:
    """Somebody who watches: a queue of one event; with the join command, which has a token, if it is private."""

    def __init__(self, *, private: bool) -> None:
        self.private = private
        self._pending: bytes | None = None
        self._arrived = trio.Event()

    def put(self, patch: bytes, whole: bytes) -> None:
        """Leave ``patch`` for the watcher; ``whole`` where it has not fetched what was left before."""
        self._pending = patch if self._pending is None else whole
        self._arrived.set()

    async def next(self) -> bytes:
        """Wait for the next event."""
        await self._arrived.wait()
        self._arrived = trio.Event()
        event, self._pending = self._pending, None
        assert event is not None
        return event


class StatusFeed:
    """The statuses of one node.

    Args:
        service: The node.
    """

    def __init__(self, service: ModelService) -> None:
        self._service = service
        self._watchers: set[Watcher] = set()
        self._someone = trio.Event()
        self._status: NodeStatus | None = None
        self._made_s = -1.0
        self._shown: Any = None
        self._samples_end_s = 0.0

    def status(self) -> NodeStatus:
        """The status, at most `SHARED_S` old."""
        now_s = trio.current_time()
        if self._status is None or now_s - self._made_s > SHARED_S:
            self._status, self._made_s = self._service.status(), now_s
        return self._status

    @contextmanager
    def watching(self, *, private: bool) -> Iterator[Watcher]:
        """Watch; the first event is a whole status.

        Args:
            private: Whether the watcher is this node's user.

        Raises:
            OverloadedError: Too many do.
        """
        if len(self._watchers) >= WATCHERS_MAX:
            raise OverloadedError(f"{WATCHERS_MAX} watch this node already: ask for GET /mesh/status now and then")
        watcher = Watcher(private=private)
        if not self._watchers:
            self._shown = msgspec.to_builtins(without_token(self.status()))
            self._someone.set()
        # What the others were told last, so that the next patch fits everybody.
        whole = self._whole(private=private)
        watcher.put(whole, whole)
        self._watchers.add(watcher)
        try:
            yield watcher
        finally:
            self._watchers.discard(watcher)
            if not self._watchers:
                self._someone = trio.Event()

    async def run(self) -> None:
        """Make statuses while somebody watches, until cancelled."""
        while True:
            await self._someone.wait()
            await trio.sleep(INTERVAL_S)
            if self._watchers:
                self._tell()

    def _tell(self) -> None:
        now = msgspec.to_builtins(without_token(self.status()))
        patch, self._shown = _event("patch", merge_patch(self._shown, now)), now
        samples = self._new_samples()
        wholes: dict[bool, bytes] = {}
        for watcher in self._watchers:
            if watcher.private not in wholes and watcher._pending is not None:
                wholes[watcher.private] = self._whole(private=watcher.private)
            watcher.put(samples + patch, wholes.get(watcher.private, b""))

    def _whole(self, *, private: bool) -> bytes:
        shown = {**self._shown, "join_command": self.status().join_command} if private else self._shown
        return _event("status", shown)

    def _new_samples(self) -> bytes:
        history = self._service.history()
        if not history or history[-1].at_s <= self._samples_end_s:
            return b""
        self._samples_end_s = history[-1].at_s
        return _event("sample", history[-1])


def without_token(status: NodeStatus) -> NodeStatus:
    """For clients that may be anybody: whoever can open a loopback port need not be this user."""
    return msgspec.structs.replace(status, join_command="")


def merge_patch(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """The members of ``after`` that ``before`` lacks or has otherwise; see the module's text."""
    patch: dict[str, Any] = {}
    for name, value in after.items():
        known = before.get(name)
        if isinstance(value, dict) and isinstance(known, dict):
            if inner := merge_patch(known, value):
                patch[name] = inner
        elif name not in before or known != value:
            patch[name] = value
    return patch


def _event(name: str, content: Any) -> bytes:
    return b"event: " + name.encode() + b"\ndata: " + encode_line(content) + b"\n\n"
