from __future__ import annotations

from collections.abc import Callable

from click.testing import Result

from meshmoe.core.errors import CapacityError
from tests.api.serving import Served
from tests.cli.conftest import start

Invoke = Callable[..., Result]


def test_tells_how_it_goes(served: Served, invoke: Invoke) -> None:
    result = invoke("leave")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.splitlines() == [
        "0/3 3 experts to hand over",
        "1/3 2 experts to hand over",
        "2/3 1 experts to hand over",
        "3/3 0 experts to hand over",
        "this node has left the mesh",
    ]
    served.wait_until(lambda: served.service.left)


def test_the_node_stops_at_the_end(served: Served) -> None:
    served.service.on_left = served._scope.cancel
    with start("leave") as process:
        out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, b"")
    assert out.endswith(b"this node has left the mesh\n")
    assert served.stop() < 20


def test_nobody_has_room(served: Served, invoke: Invoke) -> None:
    served.service.leave_error = CapacityError("nobody has room for 1 expert")
    result = invoke("leave")
    assert (result.exit_code, result.stderr) == (4, "meshmoe: nobody has room for 1 expert\n")


def test_the_node_dies(served: Served) -> None:
    served.service.delay_s = 0.7
    with start("leave") as process:
        assert process.stdout is not None
        process.stdout.readline()
        served._token.run_sync_soon(served._scope.cancel)  # type: ignore[union-attr]
        _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert b"went away" in err
