"""What `meshmoe join` does around a node."""

import gc
from types import SimpleNamespace

import pytest
import trio

import meshmoe.api.server
import meshmoe.node.node
from meshmoe.cli import join
from meshmoe.cli.logs import Log


@pytest.fixture
def unfrozen():
    gc.unfreeze()
    yield
    gc.unfreeze()


def test_what_was_imported_is_no_more_looked_through_for_garbage(monkeypatch, unfrozen):
    seen = []

    class Node:
        def __init__(self, settings):
            self.settings, self.generation, self.ready = settings, 1, trio.Event()
            self.status = lambda: SimpleNamespace(transfers=[])

        async def run(self):
            seen.append((gc.isenabled(), gc.get_freeze_count(), len(gc.get_objects())))

    async def serve_api(*args, task_status, api_key):
        task_status.started(SimpleNamespace(http=None))
        await trio.sleep_forever()

    monkeypatch.setattr(meshmoe.node.node, "Node", Node)
    monkeypatch.setattr(meshmoe.api.server, "serve_api", serve_api)
    settings = SimpleNamespace(peers=(), model=None, socket_path=None, http=None, api_key=None, links_file=None)
    trio.run(join._live_announced, settings, None, Log("json", verbose=False, node="a"))
    ((enabled, lasting, looked_through),) = seen
    assert enabled
    assert lasting > 10 * looked_through
