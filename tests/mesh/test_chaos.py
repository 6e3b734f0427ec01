"""Some minutes of chaos on real processes; `make chaos` for ten."""

import pytest
from click.testing import CliRunner

from meshmoe.cli.main import cli
from meshmoe.model.tiny import make_tiny_checkpoint

pytestmark = [pytest.mark.mesh, pytest.mark.soak]


@pytest.mark.parametrize(("seed", "join"), [(1, ""), (2, "--no-express")])
def test_every_promise_is_kept(tmp_path, seed, join):
    model = make_tiny_checkpoint("qwen3_moe", tmp_path / "model")
    picture = tmp_path / "run.svg"
    flags = (
        f"--join={join}",
        "--seed",
        seed,
        "--duration",
        "120s",
        "--nodes",
        4,
        "--model",
        model,
        "--tokens",
        12,
        "--timeline",
        picture,
    )
    result = CliRunner().invoke(cli, ["chaos", *map(str, flags)])
    assert result.exit_code == 0, result.output + result.stderr
    assert "every promise was kept" in result.output
    assert picture.read_text().startswith("<svg")
