from __future__ import annotations

from pathlib import Path

import pytest
import trio

from meshmoe.bench_engine.openai_stream import ServerError
from meshmoe.bench_engine.watchers import Watched, looking_on
from tests.api.scripted import ScriptedService
from tests.api.serving import Served


def test_people_look_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meshmoe.api.status_feed.INTERVAL_S", 0.05)
    service = ScriptedService()

    async def look(served: Served) -> Watched:
        assert served.addresses is not None
        assert served.addresses.http is not None
        async with looking_on(served.path, served.addresses.http, 5, 2) as watched:
            await trio.sleep(0.5)
        return watched

    with Served(service, tmp_path / "m.sock", ("127.0.0.1", 0)) as served:
        watched = trio.run(look, served)
    assert watched.events >= 7 * 3
    assert watched.received_bytes > 2 * 400_000  # two pages with the graph library


def test_a_server_without_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meshmoe.bench_engine.watchers._PAGE_PATHS", ("/nothing",))

    async def look(served: Served) -> None:
        assert served.addresses is not None
        assert served.addresses.http is not None
        async with looking_on(served.path, served.addresses.http, 0, 1):
            raise AssertionError("nothing is served there")

    with (
        Served(ScriptedService(), tmp_path / "m.sock", ("127.0.0.1", 0)) as served,
        pytest.raises(ExceptionGroup) as found,
    ):
        trio.run(look, served)
    assert found.group_contains(ServerError, match="404")
