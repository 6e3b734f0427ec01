from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from meshmoe.api import status_feed
from meshmoe.api.status_feed import StatusFeed, merge_patch
from meshmoe.cli.status_watch import apply_patch
from meshmoe.core.errors import OverloadedError
from meshmoe.node.history import HistorySample
from tests.api.scripted import ScriptedService
from tests.api.serving import Served


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status_feed, "INTERVAL_S", 0.05)
    monkeypatch.setattr(status_feed, "SHARED_S", 0.01)


def named_events(response: httpx.Response) -> Iterator[tuple[str, Any]]:
    name = ""
    for line in response.iter_lines():
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line:
            yield name, json.loads(line.removeprefix("data: "))


def test_whole_first_then_patches(served: Served) -> None:
    with served.client() as client, client.stream("GET", "/mesh/events") as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        events = named_events(response)
        name, shown = next(events)
        assert (name, shown["node"]) == ("status", "a")
        served.service.faults["timeouts"] = 7
        for name, patch in events:
            assert name == "patch"
            assert len(json.dumps(patch)) < 100  # not the whole status again
            apply_patch(shown, patch)
            if shown["faults"]["timeouts"] == 7:
                break
    with served.client() as client:
        assert shown == client.get("/mesh/status").json()


def test_samples_come_along(served: Served) -> None:
    with served.client() as client, client.stream("GET", "/mesh/events") as response:
        events = named_events(response)
        next(events)
        served.service.samples.append(HistorySample(at_s=5.0, tokens_per_s=11.0, hit_ratio=0.5, rounds_per_token=3.0))
        sample = next(data for name, data in events if name == "sample")
    assert sample == {"at_s": 5.0, "tokens_per_s": 11.0, "hit_ratio": 0.5, "rounds_per_token": 3.0}
    with served.client() as client:
        assert client.get("/mesh/history").json() == [sample]


def test_many_watchers_share_one_status(served: Served) -> None:
    with served.client() as client:
        responses = [client.send(client.build_request("GET", "/mesh/events"), stream=True) for _ in range(50)]
        streams = [named_events(response) for response in responses]
        for stream in streams:
            assert next(stream)[0] == "status"
        made = served.service.statuses
        for _ in range(4):
            for stream in streams:
                next(stream)
        assert served.service.statuses - made < 20  # not 200
        for response in responses:
            response.close()
    served.wait_until(lambda: not served.service.active)


def test_watching_ends_when_the_node_stops(served: Served) -> None:
    with served.client() as client, client.stream("GET", "/mesh/events") as response:
        events = named_events(response)
        next(events)
        assert served.stops_at_once()
        for _ in events:
            pass


def test_a_watcher_that_goes_is_forgotten(served: Served) -> None:
    for _ in range(3):
        raw = socket.socket(socket.AF_UNIX)
        raw.connect(str(served.path))
        raw.sendall(b"GET /mesh/events HTTP/1.1\r\nhost: x\r\n\r\n")
        assert raw.recv(100).startswith(b"HTTP/1.1 200")
        raw.close()
    made = []

    def quiet() -> bool:
        made.append(served.service.statuses)
        return len(made) > 40 and made[-1] == made[-30]

    served.wait_until(quiet)


async def _slow_watcher() -> list[bytes]:
    service = ScriptedService()
    feed = StatusFeed(service)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(feed.run)
        with feed.watching(private=True) as slow, feed.watching(private=False) as quick:
            first = await slow.next()
            await quick.next()
            service.faults["timeouts"] = 3
            await quick.next()
            service.faults["timeouts"] = 4
            await quick.next()
            await quick.next()
            late = await slow.next()
            nursery.cancel_scope.cancel()
    return [first, late]


def test_a_slow_watcher_gets_the_latest_whole() -> None:
    first, late = trio.run(_slow_watcher)
    assert first.startswith(b"event: status\n")
    assert late.startswith(b"event: status\n")
    assert json.loads(late.split(b"data: ")[1])["faults"]["timeouts"] == 4


def test_watchers_are_bounded(monkeypatch: pytest.MonkeyPatch, served: Served) -> None:
    monkeypatch.setattr(status_feed, "WATCHERS_MAX", 0)
    with served.client() as client:
        response = client.get("/mesh/events")
    assert response.status_code == OverloadedError.http_status
    assert "watch this node already" in response.json()["error"]["message"]


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner),
    max_leaves=8,
)
objects = st.fixed_dictionaries({"a": values, "b": values})


@given(objects, objects)
def test_a_patch_turns_one_into_the_other(before: dict[str, Any], after: dict[str, Any]) -> None:
    patch = merge_patch(before, after)
    shown = json.loads(json.dumps(before))
    apply_patch(shown, json.loads(json.dumps(patch)))
    assert _members(after, shown) == after


def _members(wanted: Any, shown: Any) -> Any:
    """``shown`` without members that ``wanted`` lacks: a status never loses one."""
    if isinstance(wanted, dict) and isinstance(shown, dict):
        return {name: _members(wanted[name], value) for name, value in shown.items() if name in wanted}
    return shown
