"""The resident experts of a node, under a byte budget.

Two threads use a pool. The trio thread changes it: it reserves room, loads, commits, evicts. The compute thread only
reads: it takes a reference to an expert's weights when a layer is grouped, and computes with that reference, so an
eviction at the same moment costs nothing but the memory until that layer is done.

Invariants:

- ``used_bytes`` (resident) + ``reserved_bytes`` (promised to loads under way) never exceeds ``capacity_bytes``.
- An expert is resident, reserved, or absent; never two of them.
- Weights in the pool start on 64-byte boundaries. Matrix kernels choose their path by alignment, and float32 results
  differ between the paths, so without this rule an expert's bits would depend on which node holds it.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import torch

from meshmoe.core.errors import CapacityError, PeerError
from meshmoe.core.ids import ExpertId
from meshmoe.core.units import format_size
from meshmoe.model.experts_modules import ExpertWeights

ALIGNMENT_BYTES = 64


class NotResidentError(PeerError):
    """A peer asked for experts that are not resident here.

    Attributes:
        experts: All experts of the call that are lacking, ascending.
    """

    def __init__(self, experts: Iterable[ExpertId]) -> None:
        self.experts = tuple(experts)
        super().__init__(f"not resident here: experts {', '.join(map(str, self.experts))}")


class PoolChange(NamedTuple):
    """An expert came or went.

    Attributes:
        expert: Which.
        resident: Whether it is resident now.
        size_bytes: What it takes in memory.
    """

    expert: ExpertId
    resident: bool
    size_bytes: int


Listener = Callable[[PoolChange], None]


class Reservation:
    """Room for one expert whose weights are being loaded. Commit it or release it; as a context manager it is released.

    Attributes:
        expert: The expert that will become resident.
        size_bytes: The room that is kept free for it.
    """

    def __init__(self, pool: ExpertPool, expert: ExpertId, size_bytes: int) -> None:
        self._pool = pool
        self.expert = expert
        self.size_bytes = size_bytes

    def commit(self, weights: ExpertWeights) -> None:
        """Make the expert resident.

        Raises:
            CapacityError: The weights are larger than what was reserved; the reservation stands.
            ValueError: The reservation was already committed or released.
        """
        self._pool._commit(self, weights)

    def release(self) -> None:
        """Give the room back. Does nothing after a commit or an earlier release."""
        self._pool._release(self)

    def __enter__(self) -> Reservation:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.release()


class ExpertPool:
    """Resident experts by id.

    Attributes:
        capacity_bytes: The budget.
        device: Where the weights lie; None for the host.
    """

    def __init__(self, capacity_bytes: int, device: torch.device | None = None) -> None:
        self.capacity_bytes = capacity_bytes
        self.device = device
        self._lock = threading.Lock()
        self._resident: dict[ExpertId, ExpertWeights] = {}
        self._size_bytes: dict[ExpertId, int] = {}
        self._reserved: dict[ExpertId, Reservation] = {}
        self._used_bytes = 0
        self._has_room = False
        """Whether the device was asked for the room, see `_take_room`."""
        self._listeners: list[Listener] = []

    @property
    def used_bytes(self) -> int:
        """Bytes of all resident experts."""
        return self._used_bytes

    @property
    def reserved_bytes(self) -> int:
        """Bytes promised to loads under way."""
        with self._lock:
            return sum(reservation.size_bytes for reservation in self._reserved.values())

    @property
    def free_bytes(self) -> int:
        """Bytes that a new reservation could have."""
        with self._lock:
            return self._free_bytes()

    def get(self, expert: ExpertId) -> ExpertWeights | None:
        """The expert's weights, or None when it is not resident. Safe on any thread, without a lock."""
        return self._resident.get(expert)

    def __contains__(self, expert: object) -> bool:
        return expert in self._resident

    def experts(self) -> dict[ExpertId, int]:
        """A snapshot of the resident experts with their sizes in bytes, ascending."""
        with self._lock:
            return dict(sorted(self._size_bytes.items()))

    def weights(self) -> dict[ExpertId, ExpertWeights]:
        """References to the weights of all resident experts at this moment."""
        return self._resident.copy()

    def take(self, experts: Iterable[ExpertId]) -> list[ExpertWeights]:
        """References to the weights of several experts, all or none.

        Raises:
            NotResidentError: It names every one that is lacking.
        """
        asked = list(experts)
        found = [self._resident.get(expert) for expert in asked]
        weights = [w for w in found if w is not None]
        if len(weights) != len(asked):
            raise NotResidentError(sorted(e for e, w in zip(asked, found, strict=True) if w is None))
        return weights

    def reserve(self, expert: ExpertId, size_bytes: int) -> Reservation:
        """Keep room for an expert that is about to be loaded.

        Raises:
            CapacityError: There is no room, or the expert is already resident or being loaded.
        """
        with self._lock:
            if expert in self._resident or expert in self._reserved:
                raise CapacityError(f"expert {expert} is already resident or being loaded")
            if size_bytes > self._free_bytes():
                raise CapacityError(
                    f"no room for expert {expert} of {format_size(size_bytes)}: {format_size(self._free_bytes())} of "
                    f"{format_size(self.capacity_bytes)} are free; evict others first or give the node more memory"
                )
            reservation = Reservation(self, expert, size_bytes)
            self._reserved[expert] = reservation
            return reservation

    def add(self, expert: ExpertId, weights: ExpertWeights) -> None:
        """Reserve and commit in one step, for weights that are already in memory.

        Raises:
            CapacityError: There is no room, or the expert is already resident or being loaded.
        """
        with self.reserve(expert, weights_bytes(weights)) as reservation:
            reservation.commit(weights)

    def placed(self, weights: ExpertWeights) -> ExpertWeights:
        """The same weights as the pool keeps them: aligned, and on its device.

        On any thread: a copy to a card waits for what the card does, which the trio thread should not.
        """
        if self.device is not None:
            self._take_room(self.device)
            weights = {name: tensor.to(self.device) for name, tensor in weights.items()}
        return {name: _aligned(tensor) for name, tensor in weights.items()}

    def evict(self, expert: ExpertId) -> bool:
        """Drop an expert; layers that are being computed with it at this moment still finish.

        Returns:
            Whether it was resident.
        """
        with self._lock:
            if self._resident.pop(expert, None) is None:
                return False
            size_bytes = self._size_bytes.pop(expert)
            self._used_bytes -= size_bytes
        self._notify(PoolChange(expert, False, size_bytes))
        return True

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Call ``listener`` after every change, on the thread that made it, outside the pool's lock.

        Returns:
            A function that ends the subscription.
        """
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def _take_room(self, device: torch.device) -> None:
        """Have torch ask the card for all of the capacity in one piece, out of which experts are cut then.

        Else it asks for 20 MiB at a time, into which two experts of 9 MiB fit: a tenth of the card is lost.
        """
        with self._lock:
            if self._has_room:
                return
            self._has_room = True
        # Where there is not that much the experts themselves will tell.
        with contextlib.suppress(torch.OutOfMemoryError):
            torch.empty(self.capacity_bytes + self.capacity_bytes // 64, dtype=torch.uint8, device=device)

    def _free_bytes(self) -> int:
        return self.capacity_bytes - self._used_bytes - sum(r.size_bytes for r in self._reserved.values())

    def _commit(self, reservation: Reservation, weights: ExpertWeights) -> None:
        weights = self.placed(weights)
        size_bytes, expert = weights_bytes(weights), reservation.expert
        with self._lock:
            if self._reserved.get(expert) is not reservation:
                raise ValueError(f"the reservation for expert {expert} is no longer open")
            if size_bytes > reservation.size_bytes:
                raise CapacityError(
                    f"expert {expert} takes {format_size(size_bytes)}, but only {format_size(reservation.size_bytes)} "
                    "were reserved; reserve its size in memory, not in the file"
                )
            del self._reserved[expert]
            self._size_bytes[expert] = size_bytes
            self._used_bytes += size_bytes
            self._resident[expert] = weights
        self._notify(PoolChange(expert, True, size_bytes))

    def _release(self, reservation: Reservation) -> None:
        with self._lock:
            if self._reserved.get(reservation.expert) is reservation:
                del self._reserved[reservation.expert]

    def _notify(self, change: PoolChange) -> None:
        for listener in tuple(self._listeners):
            listener(change)


def weights_bytes(weights: Mapping[str, torch.Tensor]) -> int:
    """Bytes of an expert's tensors in memory."""
    return sum(tensor.numel() * tensor.element_size() for tensor in weights.values())


def _aligned(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor itself where it is contiguous and aligned, else a copy that is (torch allocates on 64 bytes)."""
    if tensor.is_contiguous() and tensor.data_ptr() % ALIGNMENT_BYTES == 0:
        return tensor
    return tensor.clone(memory_format=torch.contiguous_format)
