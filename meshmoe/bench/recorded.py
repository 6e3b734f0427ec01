"""Recorded routing: files of real routing sets, and the demand that they stand for.

A file is a numpy archive with one array for each kind of text: ``[windows, tokens, layers, top_k]``, the experts that a
model's routers chose for each token of each window. Two ship with meshmoe: of the bundled model, ``edge-12m``, and of
the larger model that it was pruned from, ``edge-28m``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import meshmoe.placement
from meshmoe.core.errors import ConfigError
from meshmoe.placement.trace import Trace, decode_steps, no_steps, prefill_steps

Windows = NDArray[np.integer]

_SHIPPED = Path(meshmoe.placement.__file__).parent / "data"


@dataclass(frozen=True)
class Recorded:
    """A file's contents.

    Attributes:
        name: Of the file.
        windows: By kind of text.
    """

    name: str
    windows: Mapping[str, Windows]

    @property
    def layers(self) -> int:
        """MoE layers of the recorded model."""
        return int(next(iter(self.windows.values())).shape[2])

    @property
    def experts_min(self) -> int:
        """Experts that a layer has at least."""
        return 1 + max(int(sets.max()) for sets in self.windows.values())


def load_recorded(name: str) -> Recorded:
    """Read a file of recorded routing.

    Args:
        name: A path, or ``edge-12m`` or ``edge-28m``.

    Raises:
        ConfigError: There is none, or it is something else.
    """
    shipped = _SHIPPED / f"{name}.npz"
    path = shipped if shipped.is_file() else Path(name)
    try:
        with np.load(path, allow_pickle=False) as archive:
            windows = {kind: archive[kind] for kind in archive.files}
    except FileNotFoundError:
        known = ", ".join(sorted(file.stem for file in _SHIPPED.glob("*.npz")))
        raise ConfigError(f"--trace: there is no file {name}: give a path, or one of {known}") from None
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(f"--trace: cannot read {path}: {error}") from None
    shapes = {sets.shape[2:] for sets in windows.values() if sets.ndim == 4 and sets.size}
    if len(shapes) != 1 or any(sets.ndim != 4 or sets.dtype.kind not in "iu" for sets in windows.values()):
        raise ConfigError(f"--trace: {path} does not hold integer arrays [windows, tokens, layers, top_k]")
    return Recorded(path.stem, windows)


def trace_of(windows: Windows, experts: int, *, prompt_tokens: int, tokens_per_s: float) -> Trace:
    """The demand of a node that serves such windows as requests.

    Args:
        windows: ``[windows, tokens, layers, top_k]``.
        experts: Experts in a layer.
        prompt_tokens: Of each window so many are the prompt, read as one chunk; the rest is generated.
        tokens_per_s: Generated; prompts come as often as that many tokens ask for.
    """
    generated = windows.shape[1] - prompt_tokens
    sets = windows[:, prompt_tokens:].reshape(-1, *windows.shape[2:])
    prompts = [window[:prompt_tokens] for window in windows]
    layers = int(windows.shape[2])
    prefill = prefill_steps(prompts, tokens_per_s / generated, experts) if prompt_tokens else no_steps(layers)
    return Trace(decode_steps(sets, tokens_per_s), prefill)


def halves(windows: Windows) -> tuple[Windows, Windows]:
    """One half to fit, the other to score; whole windows, so that no text is in both."""
    middle = len(windows) // 2
    return windows[:middle], windows[middle:]
