from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from click.testing import Result


def test_info_counts_boxes(invoke: Callable[..., Result]) -> None:
    found = json.loads(invoke("model", "info", "--json").stdout)
    assert (found["family"], found["moe_layers"], found["top_k"]) == ("qwen3_moe", 8, 4)
    assert sum(found["experts_per_layer"]) == 256
    assert found["expert_bytes_total"] == sum(32 * size for size in found["expert_bytes"])
    third = next(fit for fit in found["fits"] if fit["profile"] == "third")
    assert (third["nodes_one_copy"], third["nodes_two_copies"]) == (3, 5)  # 45 % each
    pi = next(fit for fit in found["fits"] if fit["profile"] == "pi5-8gb")
    assert (pi["nodes_one_copy"], pi["nodes_two_copies"], pi["trunk_fits"]) == (1, 2, True)


def test_info_for_people(invoke: Callable[..., Result]) -> None:
    done = invoke("model", "info")
    assert done.exit_code == 0
    for words in ("8 layers x 32", "72.0 KiB each", "pi5-8gb", "45%"):
        assert words in done.stdout


def test_info_of_something_else(invoke: Callable[..., Result], tmp_path: Path) -> None:
    done = invoke("model", "info", str(tmp_path))
    assert done.exit_code != 0
    assert str(tmp_path) in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
