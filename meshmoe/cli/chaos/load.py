"""The requests of a chaos run, and what became of each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random

import httpx
import trio

from meshmoe.cli.local_mesh import LocalNode, NodeFailedError

DEADLINE_S = 100.0
"""A request gives up waiting for experts after 60 s (`CallPatience.total_s`); the rest is for computing."""

OUTCOMES = ("finished", "refused", "failed", "cut", "wrong", "hung")
"""What may become of a request: all its tokens; refused with a reason before it began; an error with a reason; its own
node was killed or left under it; tokens that one node alone would not have written; nothing for `DEADLINE_S`."""


@dataclass
class Request:
    """One request as its client saw it; times are seconds since the run began."""

    node: str
    began_s: float
    ended_s: float = 0.0
    outcome: str = ""
    why: str = ""
    tokens: list[int] = field(default_factory=list)


class Load:
    """Keeps so many requests going, on nodes by chance."""

    def __init__(
        self,
        nodes: Mapping[str, LocalNode],
        expected: Mapping[str, Sequence[int]],
        now_s: Callable[[], float],
        rng: Random,
        gone: Callable[[str, float], bool],
    ) -> None:
        """Make one.

        Args:
            nodes: To ask.
            expected: For each prompt the tokens that one node alone writes.
            now_s: The run's clock.
            rng: Chooses node and prompt.
            gone: Whether a node was stopped or killed at some time since then.
        """
        self._nodes = nodes
        self._expected = expected
        self._now_s = now_s
        self._rng = rng
        self._gone = gone
        self._ending = False
        self.requests: list[Request] = []

    @property
    def counts(self) -> Counter[str]:
        """Requests by outcome."""
        return Counter(r.outcome for r in self.requests)

    async def run(self, clients: int) -> None:
        """Ask until `finish`, then wait for what is under way: a request that hangs must not escape the count."""
        async with trio.open_nursery() as nursery:
            for _ in range(clients):
                nursery.start_soon(self._client)

    def finish(self) -> None:
        """Begin no more requests."""
        self._ending = True

    async def _client(self) -> None:
        while not self._ending:
            name = self._rng.choice(list(self._nodes))
            if self._nodes[name].exit_code is not None:
                await trio.sleep(0.2)
                continue
            await self.ask(name)
            await trio.sleep(self._rng.uniform(0, 0.5))

    async def ask(self, name: str) -> Request:
        """One request to a node."""
        prompt = self._rng.choice(list(self._expected))
        request = Request(name, self._now_s())
        right = list(self._expected[prompt])
        body = {"model": "default", "prompt": prompt, "max_tokens": len(right), "temperature": 0, "ignore_eos": True}
        outcome = "hung"
        with trio.move_on_after(DEADLINE_S):
            try:
                async for chunk in self._nodes[name].stream(body):
                    for choice in chunk["choices"]:
                        request.tokens += choice["meshmoe"]["token_ids"]
                outcome = "finished" if request.tokens == right else "wrong"
            except NodeFailedError as error:
                outcome, request.why = ("failed" if request.tokens else "refused"), str(error)
            except (httpx.HTTPError, OSError) as error:
                outcome, request.why = "cut", f"{type(error).__name__}: {error}"
        began_s, request.ended_s = request.began_s, self._now_s()
        if request.tokens != right[: len(request.tokens)]:
            outcome = "wrong"
        elif outcome == "hung" and self._gone(name, began_s):
            outcome, request.why = "cut", "its node stood still"
        elif outcome == "cut" and not self._gone(name, began_s):
            outcome = "failed"
        request.outcome = outcome
        self.requests.append(request)
        return request
