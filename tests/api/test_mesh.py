from __future__ import annotations

import json
import threading
import time

import msgspec

from meshmoe.core.errors import CapacityError
from meshmoe.node.status import NodeStatus
from tests.api.serving import Served


def test_status_is_the_nodes_own(served: Served) -> None:
    with served.client() as client:
        body = client.get("/mesh/status").content
    assert msgspec.json.decode(body, type=NodeStatus) == served.service.status()
    assert json.loads(body)["schema"] == 1


def test_models(served: Served) -> None:
    with served.client() as client:
        listed = client.get("/v1/models").json()
        one = client.get("/v1/models/edge-12m").json()
        default = client.get("/v1/models/default").json()
        head = client.head("/health")
    assert listed == {"object": "list", "data": [one]}
    assert default == one
    assert one == {
        "id": "edge-12m",
        "object": "model",
        "created": 1_700_000_000,
        "owned_by": "meshmoe",
        "meshmoe": {"context_tokens": 512},
    }
    assert head.status_code == 200


def test_leaving_tells_how_it_goes(served: Served) -> None:
    with served.client() as client, client.stream("POST", "/mesh/leave") as response:
        assert response.headers["content-type"] == "application/x-ndjson"
        lines = [json.loads(line) for line in response.iter_lines()]
    assert [line["remaining"] for line in lines[:-1]] == [3, 2, 1, 0]
    assert lines[-1] == {"done": True}
    served.wait_until(lambda: served.service.left)


def test_the_last_line_arrives_though_the_node_stops(served: Served) -> None:
    served.service.on_left = served._scope.cancel
    lines: list[str] = []

    def leave() -> None:
        with served.client() as client, client.stream("POST", "/mesh/leave") as response:
            lines.extend(response.iter_lines())

    leaver = threading.Thread(target=leave)
    leaver.start()
    leaver.join(30)
    assert json.loads(lines[-1]) == {"done": True}
    assert served.stop() < 20


def test_leaving_goes_on_without_a_listener(served: Served) -> None:
    served.service.delay_s = 0.1
    with served.client() as client, client.stream("POST", "/mesh/leave") as response:
        next(response.iter_lines())
    served.wait_until(lambda: served.service.left)


def test_an_error_while_leaving(served: Served) -> None:
    served.service.leave_error = CapacityError("nobody has room for 3 experts")
    with served.client() as client, client.stream("POST", "/mesh/leave") as response:
        lines = [json.loads(line) for line in response.iter_lines()]
    assert lines[-1]["error"]["type"] == "capacity_error"
    assert not served.service.left
    time.sleep(0.05)
    with served.client() as client:
        assert client.get("/health").status_code == 200
