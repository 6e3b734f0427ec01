"""For tests that make network namespaces with TUN devices."""

from pathlib import Path

import pytest

from meshmoe.bench_engine.wires.netns import ip, require_namespaces
from meshmoe.core.errors import ConfigError


def skip_without_namespaces() -> None:
    """Skip the test where this user or this machine cannot make them."""
    try:
        require_namespaces("this test")
        ip("netns", "add", "mmtry")
    except ConfigError as error:
        pytest.skip(str(error))
    ip("netns", "del", "mmtry")
    if not Path("/dev/net/tun").exists():
        pytest.skip("there is no /dev/net/tun")
