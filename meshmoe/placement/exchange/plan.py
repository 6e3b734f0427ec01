"""What one node is to hold and to own."""

from __future__ import annotations

from collections.abc import Iterable

from meshmoe.placement.bargain import Lot
from meshmoe.placement.table import Mask
from meshmoe.placement.world import ModelShape


class Plan:
    """A node's plan. Always: what is owned is held, and what is held fits."""

    def __init__(self, shape: ModelShape, capacity_bytes: int, held: Mask, owned: Mask) -> None:
        """Check and keep a plan.

        Args:
            shape: The model.
            capacity_bytes: The node's budget.
            held, owned: ``[layers, experts]``; taken over, not copied.

        Raises:
            ValueError: Something owned is not held, or what is held does not fit.
        """
        self._shape, self._capacity_bytes = shape, capacity_bytes
        self.held, self.owned = held, owned
        self.version = 0
        self._check()

    @property
    def room_bytes(self) -> int:
        """Not taken."""
        return self._capacity_bytes - int(self._shape.expert_bytes[self.held].sum())

    def set_copies(self, held: Mask) -> None:
        """Hold this, which includes everything owned.

        Raises:
            ValueError: It does not, or does not fit.
        """
        self.held = held
        self.version += 1
        self._check()

    def repair(self, adopt: Mask, disown: Mask) -> bool:
        """Own more, or less; what is disowned stays as a copy. Copies go where room is needed.

        Returns:
            Whether that can be done; if it cannot, nothing has changed.
        """
        owned = (self.owned | adopt) & ~disown
        held = self.held | owned
        if int(self._shape.expert_bytes[held].sum()) > self._capacity_bytes:
            held = owned.copy()
        if int(self._shape.expert_bytes[held].sum()) > self._capacity_bytes:
            return False
        self.held, self.owned = held, owned
        self.version += 1
        self._check()
        return True

    def allows(self, lots: Iterable[Lot], *, one: bool) -> bool:
        """Whether this end can carry the lots out: they speak of what is so, and the result is a plan."""
        room = self.room_bytes
        for lot in lots:
            adds, drops, gets, gives = map(set, _mine(lot, one))
            held = set(self.held[lot.layer].nonzero()[0].tolist())
            owned = set(self.owned[lot.layer].nonzero()[0].tolist())
            exists = set(self._shape.exists[lot.layer].nonzero()[0].tolist())
            fair = adds <= exists - held and drops <= held and gives <= owned and not gets & owned
            sound = gets <= (held | adds) - drops and drops & owned <= gives
            if not (fair and sound):
                return False
            room -= (len(adds) - len(drops)) * int(self._shape.expert_bytes[lot.layer].max())
        return room >= 0

    def apply(self, lots: Iterable[Lot], *, one: bool) -> None:
        """Carry lots out.

        Raises:
            ValueError: `allows` would have said no.
        """
        for lot in lots:
            adds, drops, gets, gives = _mine(lot, one)
            self.held[lot.layer, list(adds)] = True
            self.held[lot.layer, list(drops)] = False
            self.owned[lot.layer, list(gets)] = True
            self.owned[lot.layer, list(gives)] = False
        self.version += 1
        self._check()

    def _check(self) -> None:
        if (self.owned & ~self.held).any():
            raise ValueError("a plan must hold what it owns")
        if self.room_bytes < 0:
            raise ValueError("a plan must fit its node")


def _mine(lot: Lot, one: bool) -> tuple[tuple[int, ...], ...]:
    """What an end adds, drops, comes to own, and gives away."""
    if one:
        return lot.one_adds, lot.one_drops, lot.to_one, lot.to_two
    return lot.two_adds, lot.two_drops, lot.to_two, lot.to_one
