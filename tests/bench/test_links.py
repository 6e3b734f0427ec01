from __future__ import annotations

import pytest
import trio

from meshmoe.bench import links
from meshmoe.core.errors import PeerError


def test_a_link_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "BULK_S", 0.2)
    monkeypatch.setattr(links, "ROUND_TRIPS", 40)

    async def main() -> links.LinkFigures:
        ports: list[int] = []
        opened = trio.Event()

        def ready(port: int) -> None:
            ports.append(port)
            opened.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(links.serve_links, "127.0.0.1", 0, ready)
            await opened.wait()
            figures = await links.measure_link("127.0.0.1", ports[0])
            # Whoever speaks nonsense is let go, and the next is served.
            async with await trio.open_tcp_stream("127.0.0.1", ports[0]) as stream:
                await stream.send_all(b"?" * 100)
                with trio.fail_after(5), pytest.raises((trio.BrokenResourceError, AssertionError)):
                    assert await stream.receive_some(1)
            await links.measure_link("127.0.0.1", ports[0])
            nursery.cancel_scope.cancel()
        return figures

    figures = trio.run(main)
    assert 0 < figures.rtt_ms <= figures.rtt_p99_ms < 1000
    # Loopback moves gigabytes a second; a rate in wrong units would be a thousand times off.
    assert figures.rate_out_bytes_per_s > 20e6
    assert figures.rate_in_bytes_per_s > 20e6


def test_nobody_listens() -> None:
    with pytest.raises(PeerError, match="bench links --listen"):
        trio.run(links.measure_link, "127.0.0.1", 1)
