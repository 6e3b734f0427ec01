"""Files of recorded routing: the shipped ones, and what is refused."""

import numpy as np
import pytest

from meshmoe.bench.recorded import halves, load_recorded, trace_of
from meshmoe.core.errors import ConfigError


@pytest.mark.parametrize("name", ["edge-12m", "edge-28m"])
def test_shipped_files_hold_real_sets(name):
    recorded = load_recorded(name)
    assert set(recorded.windows) == {"prose", "python", "c", "dictionary", "arithmetic"}
    assert (recorded.layers, recorded.experts_min) == (8, 32)
    for sets in recorded.windows.values():
        assert (np.diff(sets.astype(int), axis=-1) > 0).all()  # ascending and distinct


def test_a_window_is_a_request_of_a_prompt_and_generated_tokens():
    windows = load_recorded("edge-12m").windows["prose"][:3]
    trace = trace_of(windows, 32, prompt_tokens=156, tokens_per_s=10.0)
    assert len(trace.decode) == 300 and len(trace.prefill) == 3
    assert trace.decode.tokens_per_s == pytest.approx(10.0)
    assert trace.prefill.tokens_per_s == pytest.approx(15.6)
    first, second = halves(windows)
    assert len(first) + len(second) == 3


def test_other_files_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="no file"):
        load_recorded(str(tmp_path / "none.npz"))
    np.savez(tmp_path / "x.npz", prose=np.zeros((2, 3), int))
    with pytest.raises(ConfigError, match="does not hold"):
        load_recorded(str(tmp_path / "x.npz"))
    (tmp_path / "y.npz").write_text("text")
    with pytest.raises(ConfigError, match="cannot read"):
        load_recorded(str(tmp_path / "y.npz"))
