"""Continuous batching: all requests of a node advance together, on the compute thread.

One *lane* is a greenlet that goes round and round: take in who has arrived, let go who is done, then one step. A step
is either *writing*, one forward with the last token of every request that writes, or *reading*, one forward with a
piece of the prompts. While there are both they alternate, and a piece of prompt is so short that it takes no longer
than the writing step beside it (`READ_BESIDE_S` if that is more), so no stream's token ever waits for more than that;
with nobody writing, pieces may take `READ_ALONE_S`. Prompts take turns, the remainder of a piece goes to the next.

There are two lanes. One is enough while all experts are here, and then no other begins a step beside its. Once steps
spend time waiting for peers, the requests may split into halves: while one waits, the other computes
(`meshmoe.engine.lean.halves`). A request in a forward is *busy*, and belongs to that lane.

Keys and values are taken block by block. A prompt starts only when there is room for all of it; when writers run out of
room, the youngest gives up its blocks and reads its text again later. That costs time and changes nothing: a row's bits
do not depend on how a text was cut. `Engine` makes sure that any one request has room when it is alone.

A step that fails is tried again for each of its requests alone, so an expert that cannot be had stops only those that
need it. Cancelling takes effect between steps; if all of a step's requests are cancelled, its call to peers is ended.
"""

from __future__ import annotations

import logging
from collections import deque
from time import perf_counter

import trio
from torch import Tensor

from meshmoe.core.errors import OverloadedError
from meshmoe.engine.compute import ComputeThread
from meshmoe.engine.drafts.drafting import Drafting
from meshmoe.engine.drafts.mode import AUTO, DraftMode
from meshmoe.engine.generate import Generation
from meshmoe.engine.job import Bell, Job
from meshmoe.engine.lean.batch import BatchAbandonedError, LeanBatch, LeanEngine
from meshmoe.engine.lean.blocks import NoBlocksError
from meshmoe.engine.lean.halves import Halves
from meshmoe.engine.lean.member import Member
from meshmoe.engine.lean.model import ROWS_MAX
from meshmoe.engine.lean.pieces import PieceRows
from meshmoe.engine.lean.telling import Telling
from meshmoe.engine.request import GenerationEvent
from meshmoe.engine.sampling import Choice
from meshmoe.engine.schedule import Priority

LANES = 2

READ_BESIDE_S = 0.004
"""What a piece of prompt may take beside others' tokens, if their step takes less."""

READ_ALONE_S = 0.1
"""What it may take when nobody waits for a token."""

JOIN_S = 0.1
"""For how long a lane waits to write together with those that the other one writes for; its step may have got stuck."""

_log = logging.getLogger(__name__)


class _Lane:
    """What one lane is doing."""

    def __init__(self) -> None:
        self.bell = Bell()
        self.running = False
        self.flight: tuple[Member, ...] = ()
        self.batch: LeanBatch | None = None
        self.read_next = False
        self.writing_since_s: float | None = None
        """When it began the writing step that it is in."""

    @property
    def computing(self) -> bool:
        """Whether it is in a forward that does not wait for peers right now."""
        return bool(self.flight) and self.batch is not None and not self.batch.waiting


class Scheduler:
    """See the module. `serve` is for the trio thread; what begins with an underscore, but for `_drive`, is not."""

    def __init__(
        self, lean: LeanEngine, compute: ComputeThread, nursery: trio.Nursery, drafts: DraftMode = AUTO
    ) -> None:
        self._lean = lean
        self._drafting = Drafting(drafts)
        self._compute = compute
        self._nursery = nursery
        self._lanes = [_Lane() for _ in range(LANES)]
        self._arrivals: deque[Member] = deque()
        self._members: list[Member] = []
        self._failed: list[Member] = []
        """Have heard of a failure, and wait until no lane can touch them any more."""
        """In the order in which they arrived."""
        self._serving = 0
        self._writing_s = READ_BESIDE_S
        self._telling = Telling(compute, lean.later)
        self._piece_rows = PieceRows()
        self._ring_due = False
        self._halves = Halves()

    async def serve(self, generation: Generation) -> None:
        """Generate to the end.

        Raises:
            Exception: What stopped it.
        """
        member = Member(generation, self._lean, self._drafting)
        self._arrivals.append(member)
        self._serving += 1
        for lane in self._lanes[: self._serving]:
            if not lane.running:
                lane.running = True
                self._nursery.start_soon(self._drive, lane)
        self._ring()
        try:
            await member.done.wait()
        except trio.Cancelled:
            member.cancelled = True
            for lane in self._lanes:
                if lane.batch is not None and lane.flight and all(m.cancelled for m in lane.flight):
                    lane.batch.abandon()
            self._ring()
            with trio.CancelScope(shield=True):
                await member.done.wait()
            raise
        finally:
            self._serving -= 1
        failure, member.failure = member.failure, None
        if failure is not None:
            try:
                raise failure
            finally:
                del failure, member

    def look(self) -> None:
        """Look again at what can be done: a consumer has taken events."""
        self._ring()

    async def _drive(self, lane: _Lane) -> None:
        """On the trio thread: keep a lane going for as long as there are requests."""
        try:
            while self._arrivals or self._members:
                await self._compute.run(Priority.DECODE, self._run, lane, nursery=self._nursery)
        except Exception as found:
            error = found
            if isinstance(error, MemoryError):
                error = OverloadedError("this box has no memory left for another computation: come back later")
            elif not isinstance(error, OverloadedError):
                _log.exception("the scheduler failed")
            for member in (*self._members, *self._arrivals):
                member.failure = member.failure or error
                self._failed.append(member)
            self._members.clear()
            self._arrivals.clear()
        finally:
            lane.running = False
            if not any(other.running for other in self._lanes):
                for member in (*self._members, *self._arrivals, *self._failed):
                    member.done.set()
                self._failed.clear()

    def _ring(self) -> None:
        for lane in self._lanes:
            lane.bell.ring()

    def _run(self, job: Job, lane: _Lane) -> None:
        """A lane, until nothing is left to do."""
        lane.batch = self._lean.batch(job)
        try:
            while True:
                self._take_in(job)
                if not self._members:
                    return
                if not self._step(job, lane, lane.batch):
                    self._lean.later.catch_up()
                    lane.bell.wait(job)
        finally:
            self._lean.later.catch_up()
            lane.batch.close()
            lane.batch = None
            self._ring()

    def _take_in(self, job: Job) -> None:
        while self._arrivals:
            self._members.append(self._arrivals.popleft())
        for member in tuple(self._members):
            if not member.busy and (member.cancelled or member.failure is not None or member.writer.finished):
                self._members.remove(member)
                member.close()
                job.post(member.done.set)

    def _step(self, job: Job, lane: _Lane, batch: LeanBatch) -> bool:
        """One step; returns whether there was anything to do."""
        if not self._halves.overlap and any(other.computing for other in self._lanes if other is not lane):
            return False  # there is no waiting to fill: two steps at once would only make each other late
        free = [member for member in self._members if not member.busy]
        writers = self._writers(job, lane, [member for member in free if member.writing and member.listened_to])
        beside = bool(writers) or (not self._halves.overlap and any(member.writing for member in self._members))
        allowed = self._piece_rows.within(max(READ_BESIDE_S, self._writing_s) if beside else READ_ALONE_S, beside)
        pieces = self._pieces([member for member in free if not member.writing], allowed)
        if pieces and (lane.read_next or not writers):
            lane.read_next = False
            priority = Priority.DECODE if writers else Priority.PREFILL
            if self._advance(job, lane, batch, priority, [member for member, _ in pieces], dict(pieces)):
                self._piece_rows.took(sum(rows for _, rows in pieces), allowed, batch.computed_s, beside)
        elif writers:
            lane.read_next = True
            self._advance(job, lane, batch, Priority.DECODE, writers, {})
        else:
            return False
        return True

    def _writers(self, job: Job, lane: _Lane, ready: list[Member]) -> list[Member]:
        """Those of the ready ones that write in the next step, with room for it."""
        if self._halves.now:
            half = -(-sum(member.writing for member in self._members) // 2)
            ready = ready[:half]
        elif ready and self._joining(job, lane):
            return []
        ready = ready[:ROWS_MAX]
        while ready and sum(member.sequence.lacking(1) for member in ready) > self._lean.blocks.available:
            youngest = next((m for m in reversed(self._members) if not m.busy and m.sequence.length), None)
            if youngest is None or (youngest is ready[0] and len(ready) == 1):
                return []  # others are in a forward; they give way when it is done
            youngest.restart()
            ready = [member for member in ready if member is not youngest]
        return ready

    def _joining(self, job: Job, lane: _Lane) -> bool:
        """Whether another lane writes, so that all will write together once its step is over.

        Otherwise two lanes that once took one request and three would go on like that, with twice the calls.
        """
        now_s = perf_counter()
        for other in self._lanes:
            if other is not lane and other.writing_since_s is not None and now_s - other.writing_since_s < JOIN_S:
                if not self._ring_due:
                    self._ring_due = True
                    job.post(self._nursery.start_soon, self._ring_in, JOIN_S)
                return True
        return False

    async def _ring_in(self, delay_s: float) -> None:
        await trio.sleep(delay_s)
        self._ring_due = False  # before the ring: who still has to wait then asks for another
        self._ring()

    def _pieces(self, readers: list[Member], left: int) -> list[tuple[Member, int]]:
        """Pieces of prompts for the next reading step, of ``left`` tokens in all: members, and how many of each."""
        blocks, pieces = self._lean.blocks, []
        available = blocks.available - sum(m.writing for m in self._members)
        for member in readers:
            if left <= 0 or not member.listened_to:
                continue
            if not member.sequence.length:
                member.start()
            lacking = member.sequence.lacking(member.pending)
            if lacking > available and not (len(self._members) == 1 and lacking <= blocks.available):
                member.restart()
                break  # whoever came later waits behind it
            available -= lacking
            count = min(left, member.pending)
            pieces.append((member, count))
            left -= count
        return pieces

    def _advance(
        self,
        job: Job,
        lane: _Lane,
        batch: LeanBatch,
        priority: Priority,
        group: list[Member],
        pieces: dict[Member, int],
    ) -> bool:
        """One forward for a group; if it fails, one for each member, to see whose fault it is.

        Returns:
            Whether the one forward was made.
        """
        done = False
        lengths = [member.sequence.length for member in group]
        batch.abandoned = False
        lane.flight = tuple(group)
        lane.writing_since_s = None if pieces else perf_counter()
        for member in group:
            member.busy = True
        try:
            job.turn(priority)  # not before they are busy: the other lane may have its turn here
            # Whoever cancels looks at the flight after marking, so one of us sees what the other did.
            if not all(member.cancelled for member in group):
                began = perf_counter()
                self._forward(batch, group, pieces)
                took_s = perf_counter() - began
                self._halves.waited(batch.waited_s / max(took_s, 1e-9))
                done = True
                if not pieces:
                    self._writing_s += (took_s - batch.waited_s - self._writing_s) / 8
        except BatchAbandonedError:
            pass
        except Exception as error:
            for member, length in zip(group, lengths, strict=True):
                member.sequence.truncate(min(length, member.sequence.length))  # one that begins again has none
            if len(group) > 1:
                self._apart(batch, group, pieces)
            elif not isinstance(error, NoBlocksError):  # the next step makes room, or waits for some
                group[0].failure = error
        finally:
            lane.flight, lane.writing_since_s = (), None
            for member in group:
                member.busy = False
        if self._halves.overlap and len(self._members) > len(group):
            self._ring()
        return done

    def _apart(self, batch: LeanBatch, group: list[Member], pieces: dict[Member, int]) -> None:
        for member in group:
            try:
                self._forward(batch, [member], pieces)
            except BatchAbandonedError:
                break
            except NoBlocksError:
                continue
            except Exception as error:
                member.failure = error

    def _forward(self, batch: LeanBatch, group: list[Member], pieces: dict[Member, int]) -> None:
        """Read each member's piece of prompt, or its last token, and tell what came of it."""
        if pieces:
            rows = [row for member in group for row in member.prompt_rows(pieces[member])]
            logits = iter(batch.forward(rows))
            self._lean.later.catch_up()
            self._telling.tell([(m, self._heard(m, None if m.pending else next(logits))) for m in group])
            return
        began = perf_counter()
        chosen = self._write(batch, group)
        now_s = perf_counter()
        self._telling.wrote(list(zip(group, chosen, strict=True)), now_s - began, batch.waited_s)
        self._halves.wrote(sum(map(len, chosen)), sum(member.writing for member in self._members), now_s)

    def _heard(self, member: Member, logits: Tensor | None) -> list[GenerationEvent]:
        """What comes of a piece of prompt; a failure here is the member's own, the others have been read all right."""
        try:
            return member.read(logits)
        except Exception as error:
            member.failure = error
            return []

    def _write(self, batch: LeanBatch, group: list[Member]) -> list[list[Choice]]:
        """Read each member's last token, and drafts behind it; choose as many tokens as that tells."""
        chosen = self._drafting.advance(batch, [member.asked() for member in group])
        for member, found in zip(group, chosen, strict=True):
            member.writer.stats.decode_steps += 1
            member.writer.stats.decode_tokens += len(found)
        return chosen
