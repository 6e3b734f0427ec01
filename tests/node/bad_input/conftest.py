"""Checkpoints, a mesh of two real nodes, and `meshmoe join` run in this process: importing torch anew takes seconds."""

from __future__ import annotations

import logging
import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import numba
import pytest
import torch
from click.testing import CliRunner
from transformers import LlamaConfig, LlamaForCausalLM

from meshmoe.cli.main import cli
from meshmoe.model.tiny import byte_tokenizer, make_tiny_checkpoint
from tests.node.bad_input.support import BOUND_S, Fails, Mesh, Models, ends_within, the_line


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    base = tmp_path_factory.mktemp("models")
    config = LlamaConfig(
        vocab_size=288,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    LlamaForCausalLM(config).save_pretrained(base / "dense")
    byte_tokenizer().save_pretrained(base / "dense")
    return Models(
        good=make_tiny_checkpoint("qwen3_moe", base / "good", seed=0),
        other=make_tiny_checkpoint("qwen3_moe", base / "other", seed=1),
        dense=base / "dense",
    )


@pytest.fixture
def damaged(models: Models, tmp_path: Path) -> Path:
    """A copy to do harm to."""
    return Path(shutil.copytree(models.good, tmp_path / "damaged"))


@pytest.fixture(scope="module")
def mesh(models: Models) -> Iterator[Mesh]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        running = Mesh(Path(directory), models.good)
        thread = threading.Thread(target=running.run)
        thread.start()
        assert running.ready.wait(2 * BOUND_S)
        if running.problem is not None:
            raise running.problem
        yield running
        running.stop()
        thread.join(BOUND_S)
        assert not thread.is_alive()
        assert running.problem is None
    torch.set_num_threads(threads)


@pytest.fixture
def surroundings(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Everything that a node leaves on a disk goes to a directory of this test (of a short name, for its socket)."""
    monkeypatch.delenv("MESHMOE_DEBUG", raising=False)
    monkeypatch.setenv("NUMBA_CACHE_DIR", numba.config.CACHE_DIR)  # what is compiled already need not be again
    logger = logging.getLogger("meshmoe")
    level, root_handlers = logger.level, list(logging.getLogger().handlers)
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        monkeypatch.setenv("MESHMOE_SOCKET", f"{directory}/node.sock")
        for variable in ("XDG_STATE_HOME", "XDG_CACHE_HOME", "XDG_RUNTIME_DIR"):
            path = Path(directory) / variable.lower()
            path.mkdir()
            monkeypatch.setenv(variable, str(path))
        yield Path(directory)
        assert not (Path(directory) / "node.sock").exists()
    logger.setLevel(level)
    logging.getLogger().handlers[:] = root_handlers


@pytest.fixture
def fails(surroundings: Path) -> Fails:
    """Run ``meshmoe join`` in this process and give the line that it fails with."""

    def run(*flags: str | Path, code: int) -> str:
        defaults = ("--threads", "1", "--listen", "127.0.0.1:0", "--name", "newcomer")
        with ends_within(BOUND_S):
            result = CliRunner().invoke(cli, ["join", *defaults, *map(str, flags)])
        assert result.stdout == ""
        return the_line(result.stderr, result.exit_code, code)

    return run
