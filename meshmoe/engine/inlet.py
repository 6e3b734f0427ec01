"""What brings work to the compute thread besides its inbox: the mesh's data lane, served by the thread itself.

A round through trio crosses two threads at each end of an expert call; a round through an inlet crosses none. The
engine still knows no peers: it polls the inlet between slices, waits in it when there is nothing to do, and offers it
every call for experts that are not resident here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from torch import Tensor

from meshmoe.engine.remote import LayerCall

if TYPE_CHECKING:
    from meshmoe.engine.job import Call, Job


class Inlet(Protocol):
    """All methods but `wake` belong to the compute thread, and none of them raises."""

    def poll(self) -> None:
        """Take in what has come: wake jobs whose answers are there, queue jobs for peers' calls. Does not wait."""
        ...

    def wait(self) -> None:
        """Wait until something has come, `wake` was called, or a bounded time has passed; may return early."""
        ...

    def wake(self) -> None:
        """Let `wait` return. On any thread."""
        ...

    def descriptor(self) -> int | None:
        """A file descriptor that can be read once `poll` has something to do again.

        None if it has something to do now, or may have without one: then it wants to be polled every millisecond.
        """
        ...

    def send(self, job: Job, call: LayerCall) -> Call[dict[int, Tensor]] | None:
        """Send out a layer's calls.

        Returns:
            What the job waits for, as if `meshmoe.engine.remote.RemoteExperts` had been asked; None where that must be.
        """
        ...

    # -- of inlets that have opened an office for compiled rounds (`meshmoe.engine.rounds.post`); others are never asked

    def fresh(self) -> None:
        """Bring up to date whom compiled rounds may ask; before each step."""
        ...

    def enter(self) -> bool:
        """Compiled code is about to attend to the lane: returns whether it may, and then `leave` follows soon."""
        ...

    def leave(self) -> None:
        """Compiled code has come back."""
        ...

    def adopt(self, job: Job, call: LayerCall, at: int, answered: set[int]) -> Call[dict[int, Tensor]]:
        """Go on with a compiled round that is under way, as if `send` had begun it.

        Args:
            job: Whose it is.
            call: All that the round is about.
            at: The round.
            answered: Experts whose outputs have been put where they belong.
        """
        ...

    def give_up(self, at: int) -> None:
        """Nobody wants the answers to a compiled round any more."""
        ...
