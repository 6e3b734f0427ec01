"""Every transport goes through the same suite: the fixture ``mesh`` comes once for each kind."""

import pytest

from tests.transport.support import Mesh


@pytest.fixture(params=["zmq", "memory", "impaired"])
def mesh(request):
    return Mesh(request.param)
