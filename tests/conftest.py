"""The suite on several cores: every file stays in one worker, and what starts real nodes goes through one of them.

A mesh of real processes takes all cores there are; two at once would only make each other late. Those files come first,
because they take longest, while the other workers go through the rest.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ.setdefault(variable, "1")  # before anything imports torch or numba; child processes inherit it


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give every test its group, and put the real meshes first."""
    for item in items:
        group = "mesh" if item.get_closest_marker("mesh") else item.nodeid.partition("::")[0]
        item.add_marker(pytest.mark.xdist_group(group))
    items.sort(key=lambda item: item.get_closest_marker("mesh") is None)


@pytest.fixture(scope="session", autouse=True)
def _nodes_are_forked() -> Iterator[None]:
    """Nodes of local meshes do not each import torch."""
    from meshmoe.cli import local_mesh
    from tests.forked import launch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local_mesh, "launch", launch)
        yield
