"""Flags, profiles and topology files that make no sense."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.node.bad_input.support import Fails


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--peer", "192.168.1.20"], "--peer: '192.168.1.20' is not an address: write it like 192.168.1.20:9700"),
        (["--peer", "box:99999"], "--peer: port 99999 is out of range: use 1 to 65535"),
        (["--peer", "fd00::1:7337"], "--peer: 'fd00::1:7337' is not an address"),
        (["--peer", "mm1-AAAA"], "--peer: 'mm1-AAAA'... is not a join token: copy the whole word"),
        (["--capacity", "much"], "capacity 'much': write a size like 400MiB or a share of the experts like 40%"),
        (["--capacity", "lots%"], "'lots%' is not"),
        (["--name", "Kitchen PC"], "node name 'Kitchen PC' is not usable: start with a-z or 0-9"),
        (["--name", "@box:1"], "node name '@box:1' is not usable"),
        (["--listen", "7337"], "--listen: '7337' is not an address: write it like"),
        (
            ["--advertise", "box:7337"],
            "--advertise: 'box:7337' is not a host: write a name or an address without a port",
        ),
        (["--advertise", ""], "--advertise: '' is not a host"),
        (["--http", "0.0.0.0:8080"], "HTTP is served on this machine only, not on '0.0.0.0': use 127.0.0.1:8080"),
        (["--http", "example.org:80"], "HTTP is served on this machine only, not on 'example.org'"),
        (["--http", "localhost"], "'localhost' is not an address for HTTP: write it like 127.0.0.1:8080"),
        (["--profile", "pi6"], "--profile: there is no file pi6: give a path, or one of desktop-24gb-gpu, jetson-"),
        (
            ["--links", "four-rooms"],
            "--links: there is no file four-rooms: give a path, or one of home-lan, lossy-wifi",
        ),
        (["--links", "three-rooms"], "--links: three-rooms has no node newcomer: it has "),
        (
            ["--dtype", "int8"],
            "'int8' is not one of 'auto', 'float32', 'bfloat16', 'float16': see `meshmoe join --help`",
        ),
        (["--threads", "0"], "0 is not in the range"),
        (["--frobnicate"], "--frobnicate"),
        (["node-2"], "unexpected extra argument"),
    ],
)
def test_flags(fails: Fails, flags: list[str], words: str) -> None:
    assert words in fails(*flags, code=2)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('capasity = "5GB"', "box.toml: unknown key 'capasity': did you mean 'capacity'?"),
        ('capacity = "5 parsecs"', "box.toml: capacity '5 parsecs': write a size like 400MiB"),
        ("threads = ", "box.toml: not valid TOML"),
    ],
)
def test_profile(fails: Fails, surroundings: Path, text: str, words: str) -> None:
    (surroundings / "box.toml").write_text(text)
    assert fails("--profile", surroundings / "box.toml", code=2).startswith(words)


def test_unknown_key_in_a_topology(fails: Fails, surroundings: Path) -> None:
    (surroundings / "home.toml").write_text("[nodes.newcomer]\nprofil = 'pi5-8gb'\n")
    line = fails("--links", surroundings / "home.toml", code=2)
    assert line.startswith("home.toml: unknown key 'profil'")
    assert "did you mean 'profile'?" in line
