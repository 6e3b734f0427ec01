"""Putting a load on servers: requests at given moments, whatever becomes of earlier ones, and prompts beside them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import trio

from meshmoe.bench_engine.openai_stream import Answer, Server, ask


@dataclass(frozen=True, slots=True)
class TimedRequest:
    """A request and when it is due.

    Attributes:
        server: Who is asked.
        prompt: What.
        max_tokens: To write.
        due_s: Seconds after the load began.
    """

    server: Server
    prompt: str
    max_tokens: int
    due_s: float = 0.0


@dataclass(slots=True)
class Outcome:
    """What came of a load.

    Attributes:
        answers: In the order of the requests.
        beside: Of the prompts that were read beside them.
        took_s: From the first request to the last token.
        late_s: By how much this client sent each request too late.
        beside_began_s: When the first prompt beside them was sent, by trio's clock; None without.
    """

    answers: list[Answer]
    beside: list[Answer] = field(default_factory=list)
    took_s: float = 0.0
    late_s: list[float] = field(default_factory=list)
    beside_began_s: float | None = None


def poisson_due_s(count: int, rate_per_s: float, seed: int) -> list[float]:
    """Moments of a Poisson process: ``count`` arrivals, ``rate_per_s`` of them a second on average."""
    chance, now_s, due_s = random.Random(seed), 0.0, []
    for _ in range(count):
        now_s += chance.expovariate(rate_per_s)
        due_s.append(now_s)
    return due_s


async def run_load(
    requests: Sequence[TimedRequest], beside: Callable[[], Iterator[tuple[Server, str]]] | None = None
) -> Outcome:
    """Send every request when it is due, and wait for all answers.

    Args:
        requests: At least one.
        beside: Prompts to have read one after the other, one token each, from when every request that was due at the
            beginning has its first token until all requests are answered. The first is always read to its end.
    """
    began_s = trio.current_time()
    outcome = Outcome([Answer(began_s) for _ in requests], late_s=[0.0] * len(requests))
    left, all_done = len(requests), trio.Event()

    async def send(number: int, request: TimedRequest) -> None:
        nonlocal left
        await trio.sleep_until(began_s + request.due_s)
        outcome.late_s[number] = trio.current_time() - began_s - request.due_s
        await ask(request.server, request.prompt, request.max_tokens, outcome.answers[number])
        left -= 1
        if not left:
            all_done.set()

    async def read_beside(prompts: Iterator[tuple[Server, str]]) -> None:
        for answer, request in zip(outcome.answers, requests, strict=True):
            if not request.due_s:
                await answer.begun.wait()
        outcome.beside_began_s = trio.current_time()
        for server, prompt in prompts:
            outcome.beside.append(await ask(server, prompt, 1))
            if all_done.is_set():
                return

    async with trio.open_nursery() as nursery:
        for number, request in enumerate(requests):
            nursery.start_soon(send, number, request)
        if beside is not None:
            nursery.start_soon(read_beside, beside())
    ends = [answer.arrivals_s[-1] for answer in outcome.answers if answer.arrivals_s]
    outcome.took_s = max(ends, default=trio.current_time()) - began_s
    return outcome
