"""The ``meshmoe`` object of a response: what the mesh did for it. Its fields are documented in docs/api.md."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from meshmoe.engine.request import GenerationStats


class GenerationReport(msgspec.Struct, kw_only=True):
    """`GenerationStats` of all choices of one request together, with the ratios that clients would compute from them.

    Counts are sums over the choices. Durations are the longest, because choices are written side by side.
    """

    prompt_tokens: int
    completion_tokens: int
    queue_s: float
    prefill_s: float
    decode_s: float
    tokens_per_s: float
    decode_steps: int
    decode_tokens: int
    drafted_tokens: int
    accepted_tokens: int
    acceptance: float | None
    tokens_per_pass: float
    drafted_per_pass: float = 0.0
    decode_rounds: int
    prefill_rounds: int
    rounds_per_token: float
    hit_ratio: float
    expert_calls_local: int
    expert_calls_remote: int
    sent_bytes: int
    received_bytes: int
    retries: int
    remote_wait_s: float


def report(choices: Sequence[GenerationStats]) -> GenerationReport:
    """Sum up what the choices of a request took."""
    total = GenerationStats()
    for stats in choices:
        for name in ("queue_s", "prefill_s", "decode_s", "remote_wait_s"):
            setattr(total, name, max(getattr(total, name), getattr(stats, name)))
        for name in _COUNTS:
            setattr(total, name, getattr(total, name) + getattr(stats, name))
    return GenerationReport(
        prompt_tokens=total.prompt_tokens,
        completion_tokens=total.completion_tokens,
        queue_s=round(total.queue_s, 6),
        prefill_s=round(total.prefill_s, 6),
        decode_s=round(total.decode_s, 6),
        # The first token belongs to the prefill, so it is left out of the decoding rate.
        tokens_per_s=round(total.decode_tokens / total.decode_s, 3) if total.decode_s > 0 else 0.0,
        decode_steps=total.decode_steps,
        decode_tokens=total.decode_tokens,
        drafted_tokens=total.drafted_tokens,
        accepted_tokens=total.accepted_tokens,
        acceptance=None if total.acceptance is None else round(total.acceptance, 4),
        tokens_per_pass=round(total.tokens_per_pass, 4),
        drafted_per_pass=round(total.drafted_tokens / total.decode_steps, 4) if total.decode_steps else 0.0,
        decode_rounds=total.decode_rounds,
        prefill_rounds=total.prefill_rounds,
        rounds_per_token=round(total.rounds_per_token, 4),
        hit_ratio=round(total.hit_ratio, 4),
        expert_calls_local=total.expert_calls_local,
        expert_calls_remote=total.expert_calls_remote,
        sent_bytes=total.sent_bytes,
        received_bytes=total.received_bytes,
        retries=total.retries,
        remote_wait_s=round(total.remote_wait_s, 6),
    )


_COUNTS = (
    "prompt_tokens",
    "completion_tokens",
    "decode_steps",
    "decode_tokens",
    "drafted_tokens",
    "accepted_tokens",
    "decode_rounds",
    "prefill_rounds",
    "expert_calls_local",
    "expert_calls_remote",
    "sent_bytes",
    "received_bytes",
    "retries",
)
