"""Where weights come from: one reading interface for a checkpoint directory and for a node's partial store."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from meshmoe.core.ids import ExpertId
from meshmoe.model.architecture import Architecture
from meshmoe.model.layout import Layout, MoeLayer
from meshmoe.model.tensors import TensorSpec, aligned_buffer, bytes_of
from meshmoe.model.unit_names import UnitName

Progress = Callable[[int], None]
"""Called with the number of bytes done so far, now and then, on a thread that does the work."""


class WeightSource(ABC):
    """A place from which the trunk and (some) experts can be read. All methods may be called from any thread.

    Attributes:
        directory: Where ``config.json`` and the tokenizer's files lie.
    """

    directory: Path

    @property
    @abstractmethod
    def architecture(self) -> Architecture:
        """The model's skeleton."""

    @property
    @abstractmethod
    def layout(self) -> Layout:
        """Which tensors are experts and which are trunk."""

    @abstractmethod
    def has_expert(self, expert: ExpertId) -> bool:
        """Whether the expert's unit can be read here."""

    @abstractmethod
    def read_expert_into(self, expert: ExpertId, pieces: Sequence[memoryview]) -> None:
        """Read an expert's unit, each of its pieces to a place of its own.

        Args:
            expert: Which one.
            pieces: One writable view for each of ``layout.layer_of(expert).pieces``, of its size.

        Raises:
            CheckpointError: It is not here, cannot be read, or (in a store) is damaged.
        """

    def read_expert_unit(self, expert: ExpertId) -> memoryview:
        """Read an expert's whole unit into fresh, 64-byte aligned memory.

        Raises:
            CheckpointError: It is not here, cannot be read, or (in a store) is damaged.
        """
        layer = self.layout.layer_of(expert)
        unit = bytes_of(aligned_buffer(layer.expert_bytes))
        self.read_expert_into(expert, [unit[p.offset_bytes : p.offset_bytes + p.spec.size_bytes] for p in layer.pieces])
        return unit

    @abstractmethod
    def expert_digest(self, expert: ExpertId) -> bytes | None:
        """The digest that the unit must have; None as long as nobody has computed the manifest."""

    @abstractmethod
    def trunk_spec(self, key: str) -> TensorSpec:
        """Dtype and shape of one tensor of the trunk."""

    @abstractmethod
    def read_trunk(self, offset_bytes: int, length_bytes: int) -> memoryview:
        """Read part of the trunk's bytes; shorter than asked for at its end.

        Raises:
            CheckpointError: It is not here or cannot be read.
        """

    @abstractmethod
    def read_trunk_tensor(self, key: str) -> torch.Tensor:
        """Read one tensor of the trunk into fresh, 64-byte aligned memory, as stored.

        Raises:
            CheckpointError: It is not here, cannot be read, or (in a store) the trunk is damaged.
        """

    @abstractmethod
    def has_unit(self, unit: UnitName) -> bool:
        """Whether ``read_unit`` can serve the whole unit."""

    @abstractmethod
    def unit_bytes(self, unit: UnitName) -> int:
        """Size of a unit of the model, whether it is here or not.

        Raises:
            CheckpointError: The model has no such unit.
        """

    @abstractmethod
    def read_unit(self, unit: UnitName, offset_bytes: int, length_bytes: int) -> memoryview:
        """Read part of any unit, to serve it to a peer; shorter than asked for at its end. Nothing is verified.

        Raises:
            CheckpointError: It is not here or cannot be read.
        """

    @property
    def config(self) -> Any:
        """The transformers configuration."""
        return self.architecture.config

    @property
    def family(self) -> str:
        """transformers model type, such as ``qwen3_moe``."""
        return self.architecture.family

    @property
    def layers(self) -> tuple[MoeLayer, ...]:
        """The MoE layers in the model's order."""
        return self.layout.layers

    @property
    def dtype(self) -> torch.dtype:
        """What ``from_pretrained(dtype="auto")`` would load the model as."""
        return self.architecture.dtype(self.trunk_spec(key) for key in self.layout.trunk)

    @property
    def context_length(self) -> int:
        """Longest sequence of tokens that the model was made for."""
        return self.architecture.context_length

    @property
    def trunk_bytes(self) -> int:
        """Size of the trunk as stored."""
        return self.layout.trunk_bytes

    def experts(self) -> Iterator[ExpertId]:
        """All routed experts of the model, layer by layer, whether they are here or not."""
        return iter(self.layout.experts())

    def expert_bytes(self, expert: ExpertId) -> int:
        """Size of an expert's unit as stored.

        Raises:
            CheckpointError: The model has no such expert.
        """
        return self.layout.layer_of(expert).expert_bytes
