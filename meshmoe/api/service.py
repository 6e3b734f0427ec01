"""What the API needs from the node it speaks for."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from meshmoe.engine.request import GenerationEvent, GenerationRequest
from meshmoe.node.history import HistorySample
from meshmoe.node.leave_progress import LeaveProgress
from meshmoe.node.mesh_keeper import MeshKeeper
from meshmoe.node.meters import Meters
from meshmoe.node.status import NodeStatus


class ModelService(Protocol):
    """One node as its local clients see it. All methods belong to the trio thread."""

    @property
    def model_name(self) -> str:
        """The name under which the model is listed; the only one that requests may use (or ``default``)."""
        ...

    @property
    def started_s(self) -> int:
        """Wall-clock time of the node's start, seconds since 1970."""
        ...

    @property
    def tokenizer(self) -> Any:
        """The transformers tokenizer (``PreTrainedTokenizerBase``).

        Raises:
            MeshmoeError: the model is not loaded yet; the message says what the node is doing.
        """
        ...

    @property
    def context_tokens(self) -> int:
        """Longest sequence of the model; raises as ``tokenizer`` does."""
        ...

    def require_ready(self) -> None:
        """Return if a request would be served now.

        Raises:
            CapacityError: experts are missing; the message says how many bytes of capacity.
            MeshmoeError: the node is starting or leaving.
        """
        ...

    def generate(self, request: GenerationRequest) -> AbstractAsyncContextManager[AsyncIterator[GenerationEvent]]:
        """Run a generation; leaving the context early cancels it everywhere."""
        ...

    def status(self) -> NodeStatus:
        """A snapshot."""
        ...

    def keeper(self) -> MeshKeeper:
        """Decides who belongs to the mesh.

        Raises:
            RequestError: The mesh is insecure, or this node belongs to none yet.
        """
        ...

    def meters(self) -> Meters:
        """What this node's requests took since its start; grows."""
        ...

    def history(self) -> Sequence[HistorySample]:
        """How it went lately, oldest first."""
        ...

    def routing(self, tokens: int) -> NDArray[np.int16]:
        """Routing sets of tokens that this node has written lately: ``[windows, tokens, MoE layers, top_k]``.

        Args:
            tokens: Of a window.
        """
        ...

    def leave(self) -> AbstractAsyncContextManager[AsyncIterator[LeaveProgress]]:
        """Hand over what only this node holds, then stop; yields progress."""
        ...
