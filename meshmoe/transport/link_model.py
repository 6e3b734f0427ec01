"""One direction of an emulated link, as arithmetic: no clock, no tasks; times are given and returned.

The model:

- *Rate.* The three lanes are three TCP connections that share the link. It serves those which have something to send
  equally and infinitely finely (processor sharing), which is what fair queueing approximates packet by packet (RFC
  8290's FQ-CoDel, the default of many systems; three TCP connections with equal round trips come close without it). So
  a probe of 300 bytes beside a bulk transfer takes twice its own time on the wire, and never waits for a chunk to end.
  Only parcels' bytes are counted; headers would take another 6 % on Ethernet.
- *Delay.* Half of the round trip, plus jitter drawn evenly from zero to ``jitter_s`` for every parcel.
- *Loss* costs time: see `meshmoe.transport.tcp_loss`.
- *Order.* A parcel never arrives before its predecessor on the lane; jitter and loss hold up what is behind them.
- *Back-pressure.* A lane that is held sends nothing. A blocked link sends nothing on any lane.
- *Alone.* A parcel that finds the link idle may leave without joining a queue (`LinkModel.pass_alone`). What comes to
  other lanes while it leaves waits for it instead of sharing, so it is late by that parcel's time on the wire at most.

Compiled code lets parcels of the data lane pass alone by itself, on the numbers of `LinkModel.table`: the model has no
others for what they say, and says there whether it would let one pass.

Departures are worked out late, when the first arrival that could follow from them is due: that halves the wake-ups.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Mapping
from typing import NamedTuple

from meshmoe.core.endpoints import Lane
from meshmoe.core.links import LinkShape
from meshmoe.transport.link_table import LinkTable
from meshmoe.transport.queue import ParcelQueue, QueuedParcel
from meshmoe.transport.tcp_loss import SEGMENT_BYTES, retransmission_delay_s

ALONE_WAIT_S_MAX = 0.001
"""What passes alone may wait for what passed before it; whatever is longer belongs into a queue, which is bounded."""

# Bytes closer to zero than this are rounding.
_DUST_BYTES = 1e-6


class Arrival(NamedTuple):
    """A parcel that has come out at the other end."""

    lane: Lane
    parcel: QueuedParcel


class _LaneState:
    def __init__(self, queue: ParcelQueue) -> None:
        self.queue = queue
        self.held = False
        # Of the queue's head; None while it has not begun to leave.
        self.unsent_bytes: float | None = None
        self.in_flight: deque[tuple[float, QueuedParcel]] = deque()
        self.last_arrival_s = -math.inf


class LinkModel:
    """See the text above. Call `advance` before changing anything, so that the past is settled under the old rules.

    Attributes:
        table: What compiled code sees of the link.
    """

    def __init__(
        self,
        shape: LinkShape,
        queues: Mapping[Lane, ParcelQueue],
        chance: random.Random,
        now_s: float,
        table: LinkTable | None = None,
    ) -> None:
        """Make an idle link.

        Args:
            shape: How it is.
            queues: What each lane has to send; the model pops what has left. Whoever appends calls `advance` before.
            chance: Where jitter and loss come from.
            now_s: The time.
            table: Kept up to date; its own if there is none.
        """
        self.table = LinkTable() if table is None else table
        self._shape = shape
        self._blocked = False
        self._lanes = {lane: _LaneState(queue) for lane, queue in queues.items()}
        self._data = self._lanes[Lane.DATA]
        self._chance = chance
        self.settled_s = now_s
        self.shape = shape
        for queue in queues.values():
            queue.watch(self._mark)

    @property
    def shape(self) -> LinkShape:
        """How the link is."""
        return self._shape

    @shape.setter
    def shape(self, shape: LinkShape) -> None:
        self._shape = shape
        self.table.shaped(shape)
        self._mark()

    @property
    def blocked(self) -> bool:
        """Whether nothing gets through."""
        return self._blocked

    @blocked.setter
    def blocked(self, blocked: bool) -> None:
        self._blocked = blocked
        self._mark()

    @property
    def settled_s(self) -> float:
        """The time that the link has come to; a time to come while a parcel leaves that is alone."""
        return self.table.settled_s

    @settled_s.setter
    def settled_s(self, time_s: float) -> None:
        self.table.settled_s = time_s

    def hold(self, lane: Lane, held: bool) -> None:
        """Stop or resume sending on one lane, as a receiver that does not read would."""
        self._lanes[lane].held = held
        self._mark()

    def forget_lane(self, lane: Lane) -> int:
        """Drop what is under way on ``lane``, and start its queue's head anew; returns how many were dropped."""
        state = self._lanes[lane]
        dropped = len(state.in_flight)
        state.in_flight.clear()
        state.unsent_bytes = None
        return dropped

    def pass_alone(self, lane: Lane, size_bytes: int, now_s: float) -> float | None:
        """Let a parcel leave at once; returns when it arrives, or None, with nothing done, if it has to queue.

        It has to where the link is held up, has something to send, or is busy for `ALONE_WAIT_S_MAX` to come.
        """
        state = self._lanes[lane]
        if not self._is_free(state):
            return None
        begins_s = max(now_s, self.settled_s)
        if begins_s - now_s > ALONE_WAIT_S_MAX:
            return None
        self.settled_s = begins_s + size_bytes / self.shape.rate_bytes_per_s
        return self._arrival_s(state, size_bytes)

    def advance(self, now_s: float) -> list[Arrival]:
        """Let time pass until ``now_s``; returns what has arrived, in order."""
        self._settle(now_s)
        arrived: list[tuple[float, Arrival]] = []
        for lane, state in self._lanes.items():
            while state.in_flight and state.in_flight[0][0] <= now_s:
                arrival_s, parcel = state.in_flight.popleft()
                arrived.append((arrival_s, Arrival(lane, parcel)))
        arrived.sort(key=lambda item: item[0])
        return [arrival for _, arrival in arrived]

    def next_event_s(self) -> float:
        """When to call `advance` again, at the latest, if nothing else happens; infinity if nothing will."""
        next_s = min((state.in_flight[0][0] for state in self._lanes.values() if state.in_flight), default=math.inf)
        active = self._active()
        if active:
            first_departure_s = self.settled_s + min(self._unsent(state) for state in active) / self._share(active)
            next_s = min(next_s, first_departure_s + self.shape.rtt_s / 2)
        return next_s

    def _is_free(self, state: _LaneState) -> bool:
        return not (self._blocked or state.held or any(len(other.queue) for other in self._lanes.values()))

    def _mark(self) -> None:
        # What a loss costs is more than compiled code can work out.
        self.table.mark(is_open=not self._shape.loss and self._is_free(self._data))

    def _active(self) -> list[_LaneState]:
        if self.blocked:
            return []
        return [state for state in self._lanes.values() if len(state.queue) and not state.held]

    def _share(self, active: list[_LaneState]) -> float:
        return self.shape.rate_bytes_per_s / len(active)

    def _unsent(self, state: _LaneState) -> float:
        if state.unsent_bytes is None:
            state.unsent_bytes = float(state.queue.head().size_bytes)
        return state.unsent_bytes

    def _settle(self, now_s: float) -> None:
        """Send until ``now_s``: from one departure to the next all active lanes get equal shares."""
        if now_s < self.settled_s:
            return
        while active := self._active():
            share = self._share(active)
            step_s = min(self._unsent(state) for state in active) / share
            if self.settled_s + step_s > now_s:
                sent_bytes = (now_s - self.settled_s) * share
                self.settled_s = now_s
                self._send(active, sent_bytes)
                return
            self.settled_s += step_s
            # A link of infinite rate sends in no time at all; zero times infinity would be no number.
            self._send(active, step_s * share if step_s else 0.0)
        self.settled_s = now_s

    def _send(self, active: list[_LaneState], sent_bytes: float) -> None:
        for state in active:
            left_bytes = self._unsent(state) - sent_bytes
            state.unsent_bytes = left_bytes
            if left_bytes <= _DUST_BYTES or math.isinf(self.shape.rate_bytes_per_s):
                self._depart(state)

    def _depart(self, state: _LaneState) -> None:
        parcel = state.queue.pop()
        state.unsent_bytes = None
        state.in_flight.append((self._arrival_s(state, parcel.size_bytes), parcel))

    def _arrival_s(self, state: _LaneState, size_bytes: int) -> float:
        """When a parcel arrives that has just left."""
        shape = self.shape
        arrival_s = self.settled_s + shape.rtt_s / 2 + self._chance.random() * shape.jitter_s
        if shape.loss:
            arrival_s += retransmission_delay_s(
                size_bytes,
                followed=len(state.queue) > 0,
                rtt_s=shape.rtt_s,
                segment_s=SEGMENT_BYTES / shape.rate_bytes_per_s,
                loss=shape.loss,
                chance=self._chance,
            )
        arrival_s = max(state.last_arrival_s, arrival_s)
        if state is self._data:
            # Compiled code may have let a later one pass. The table alone would not do: its times, of another clock,
            # are rounded, and what it says of this lane's own last parcel may be a little before that.
            self.table.last_s = arrival_s = max(self.table.last_s, arrival_s)
        state.last_arrival_s = arrival_s
        return arrival_s
