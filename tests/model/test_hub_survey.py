"""Reading a model once for its digests: what survives a process that ends in the middle of a large unit."""

from __future__ import annotations

from pathlib import Path

import pytest

from meshmoe.model import hub_survey
from meshmoe.model.checkpoint import Checkpoint
from meshmoe.model.hub_survey import survey
from meshmoe.model.unit_names import UnitName

TRUNK = UnitName("trunk")
CHUNK_BYTES = 4096
MARK_BYTES = 3 * CHUNK_BYTES


class Remote(Checkpoint):
    """A checkpoint that notes what is read of its trunk, and fails there from some byte on."""

    fails_at_bytes: int = 1 << 60

    def read_unit(self, unit: UnitName, offset_bytes: int, length_bytes: int) -> memoryview:
        if unit == TRUNK:
            if offset_bytes >= self.fails_at_bytes:
                raise OSError("the line is gone")
            self.trunk_reads.append(offset_bytes)
        return super().read_unit(unit, offset_bytes, length_bytes)

    @property
    def trunk_reads(self) -> list[int]:
        return self.__dict__.setdefault("reads", [])


@pytest.fixture
def remote(tiny, monkeypatch) -> Remote:
    monkeypatch.setattr(hub_survey, "CHUNK_BYTES", CHUNK_BYTES)
    monkeypatch.setattr(hub_survey, "MARK_BYTES", MARK_BYTES)
    found = Remote.open(tiny())
    assert isinstance(found, Remote)
    assert found.trunk_bytes > 5 * MARK_BYTES
    return found


def run(remote: Remote, directory: Path) -> tuple[str, int]:
    """The model's name, and how many bytes went by or were there."""
    told: list[int] = []
    found = survey(remote, directory / "digests", directory, {TRUNK}, told.append)
    return found.model_digest, sum(told)


def test_the_name_is_that_of_the_whole_checkpoint(remote, tmp_path):
    name, told = run(remote, tmp_path)
    assert name == remote.manifest().model_digest
    assert told == remote.trunk_bytes + sum(map(remote.expert_bytes, remote.experts()))
    assert (tmp_path / "trunk.bin.part").read_bytes() == bytes(remote.read_trunk(0, remote.trunk_bytes))
    assert not (tmp_path / "experts").exists(), "experts that are not wanted are not kept"


@pytest.mark.parametrize(
    ("damage", "goes_on_at"),
    [
        ("none", 2 * MARK_BYTES),
        ("after the last mark", 2 * MARK_BYTES),
        ("between the marks", MARK_BYTES),
        ("before the first mark", 0),
        ("cut", MARK_BYTES),
        ("gone", 0),
    ],
)
def test_a_large_unit_goes_on_at_the_last_prefix_that_is_as_written_down(remote, tmp_path, damage, goes_on_at):
    remote.fails_at_bytes = 2 * MARK_BYTES + 2 * CHUNK_BYTES
    with pytest.raises(OSError, match="the line is gone"):
        run(remote, tmp_path)
    part = tmp_path / "trunk.bin.part"
    content = bytearray(part.read_bytes())
    assert len(content) == remote.fails_at_bytes
    places = {
        "after the last mark": 2 * MARK_BYTES + 5,
        "between the marks": MARK_BYTES + 5,
        "before the first mark": 5,
    }
    if damage in places:
        content[places[damage]] ^= 1
    part.write_bytes(content[: 2 * MARK_BYTES - 1] if damage == "cut" else content)
    if damage == "gone":
        part.unlink()
    remote.fails_at_bytes = 1 << 60
    remote.trunk_reads.clear()
    name, _ = run(remote, tmp_path)
    assert name == remote.manifest().model_digest
    assert remote.trunk_reads[0] == goes_on_at
    assert part.read_bytes() == bytes(remote.read_trunk(0, remote.trunk_bytes))
