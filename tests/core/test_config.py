"""Profiles and topology files: what is shipped is valid, what is wrong is one clear line."""

from pathlib import Path

import pytest

from meshmoe.core.config import Capacity, parse_capacity, parse_profile, parse_topology
from meshmoe.core.errors import ConfigError

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("path", sorted((ROOT / "nodes").glob("*.toml")), ids=lambda p: p.name)
def test_shipped_profiles_are_valid(path):
    profile = parse_profile(path.read_text(), path.name)
    assert profile.description and profile.source


@pytest.mark.parametrize("path", sorted((ROOT / "topology").glob("*.toml")), ids=lambda p: p.name)
def test_shipped_topologies_are_valid(path):
    topology = parse_topology(path.read_text(), str(path))
    assert topology.name == path.stem
    assert topology.description
    for node in topology.nodes.values():
        if node.profile is not None:
            assert (ROOT / "nodes" / f"{node.profile}.toml").exists()


def test_links_override_the_default():
    topology = parse_topology((ROOT / "topology/two-sites.toml").read_text(), "two-sites.toml")
    links = topology.links_of("north-1")
    assert links["north-2"].rtt_s == pytest.approx(0.3e-3)
    assert links["south-1"].rtt_s == pytest.approx(20e-3)
    assert len(topology.links) == 10


def test_capacity_is_a_size_or_a_share():
    assert parse_capacity("400MiB") == Capacity(size_bytes=400 * 2**20)
    assert parse_capacity("40%").resolve(1000) == 400
    with pytest.raises(ConfigError, match="a size like 400MiB or a share"):
        parse_capacity("much")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('capasity = "5GB"', "box.toml: unknown key 'capasity': did you mean 'capacity'?"),
        ("threads = 0", "box.toml: threads must be at least 1, not 0"),
        ('threads = "four"', "box.toml: expected `int | null`, got `str` in threads"),
        ('memory = "8 parsecs"', "box.toml: '8 parsecs' is not a size: write it like 512MiB, 1.5GB or 4096"),
        ("memory = ", "box.toml: not valid TOML"),
    ],
)
def test_bad_profile_is_one_clear_line(text, message):
    with pytest.raises(ConfigError) as caught:
        parse_profile(text, "box.toml")
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[nodes]", "lab.toml: a topology needs at least one node"),
        ('[nodes.a]\ncolour = "red"', "lab.toml: unknown key 'colour' in nodes"),
        ("[nodes.A]", "lab.toml: node name 'A' is not usable"),
        ('[nodes.a]\n[[links]]\nbetween=["a","b"]\npreset="lan"', "lab.toml: link between a and b: no node 'b'"),
        ('[nodes.a]\n[nodes.b]\n[default_link]\npreset="tin can"', "lab.toml: link preset 'tin can' is not known"),
        ('[nodes.a]\n[nodes.b]\n[default_link]\nrtt="1ms"', "lab.toml: a link needs a preset, or both rtt and rate"),
        ('[nodes.a]\n[nodes.b]\n[default_link]\npreset="lan"\nloss="100%"', "lab.toml: loss '100%' is out of range"),
    ],
)
def test_bad_topology_is_one_clear_line(text, message):
    with pytest.raises(ConfigError) as caught:
        parse_topology(text, "lab.toml")
    assert str(caught.value).startswith(message)
