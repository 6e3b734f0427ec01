"""Profiles and topology files by path and by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from meshmoe.core.config import parse_profile, parse_topology
from meshmoe.core.errors import ConfigError
from meshmoe.node.data_files import read_data_file, shipped_names


def message_of(name: str) -> str:
    with pytest.raises(ConfigError) as caught:
        read_data_file("nodes", name, "--profile")
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith("--profile: ")
    return text


def test_a_shipped_one() -> None:
    text, where = read_data_file("nodes", "pi5-8gb", "--profile")
    assert where == "pi5-8gb.toml"
    assert "capacity" in text


def test_a_path(tmp_path: Path) -> None:
    (tmp_path / "box.toml").write_text("threads = 2")
    assert read_data_file("nodes", str(tmp_path / "box.toml"), "--profile") == ("threads = 2", "box.toml")


def test_a_path_without_an_ending(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pi5-8gb").write_text("threads = 2")
    monkeypatch.chdir(tmp_path)
    assert read_data_file("nodes", "pi5-8gb", "--profile") == ("threads = 2", "pi5-8gb")


def test_a_directory_does_not_hide_a_shipped_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pi5-8gb").mkdir()
    monkeypatch.chdir(tmp_path)
    assert read_data_file("nodes", "pi5-8gb", "--profile")[1] == "pi5-8gb.toml"


@pytest.mark.parametrize("name", ["nowhere", "nowhere.toml", "no/where.toml"])
def test_none_of_that_name(name: str) -> None:
    text = message_of(name)
    assert f"there is no file {name}: give a path, or one of " in text
    assert "pi5-8gb" in text


def test_unreadable(tmp_path: Path) -> None:
    (tmp_path / "box.toml").write_bytes(b"\xff\xfe\x00")
    assert message_of(str(tmp_path / "box.toml")).endswith("box.toml: it is not text")
    assert message_of(str(tmp_path)).endswith("Is a directory")
    assert message_of(str(tmp_path / "box.toml" / "x")).endswith("Not a directory")
    assert message_of("x" * 5000).endswith("File name too long")


@pytest.mark.parametrize("name", shipped_names("nodes"))
def test_shipped_profiles_name_their_source(name: str) -> None:
    profile = parse_profile(*read_data_file("nodes", name, "--profile"))
    assert profile.description
    assert profile.parsed_capacity() is not None
    for key in ("memory_rate", "disk_rate", "power"):
        assert getattr(profile, key) is None or key in profile.source


@pytest.mark.parametrize("name", shipped_names("topology"))
def test_shipped_topologies_connect_all_their_boxes(name: str) -> None:
    topology = parse_topology(*read_data_file("topology", name, "--topology"))
    assert topology.description
    for node, box in topology.nodes.items():
        assert set(topology.links_of(node)) == set(topology.nodes) - {node}
        if box.profile is not None:
            read_data_file("nodes", box.profile, "profile")
