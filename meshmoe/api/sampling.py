"""From a request's fields to the engine's sampling parameters. The defaults are OpenAI's."""

from __future__ import annotations

import msgspec

from meshmoe.api.request_types import GenerationFields, JsonObjectFormat, JsonSchemaFormat
from meshmoe.core.errors import ConfigError, RequestError
from meshmoe.engine.drafts.mode import DraftMode, parse_draft_mode
from meshmoe.engine.request import STOP_STRINGS_MAX, SamplingParams

TEMPERATURE_DEFAULT = 1.0
TOP_P_MIN = 1e-6
"""OpenAI allows 0, which can only mean the likeliest token; so does any share that is as small as this."""

_ANY_OBJECT = '{"type": "object"}'

SEED_MASK = (1 << 63) - 1


def sampling_params(
    body: GenerationFields,
    *,
    copy: int,
    max_tokens: int | None,
    room_tokens: int,
    logprobs: int | None,
    template_stops: tuple[str, ...] = (),
) -> SamplingParams:
    """How one choice is to be sampled.

    Args:
        body: The request.
        copy: Which of the ``n`` choices of a prompt; each draws from a seed of its own, the first from the client's.
        max_tokens: Tokens to write at most; None means as many as fit.
        room_tokens: Tokens that fit into the context behind the prompt. A larger ``max_tokens`` is cut to it, as the
            text could not be longer anyway.
        logprobs: As the engine takes it.
        template_stops: Stop strings of the chat's format, beside the client's.

    Raises:
        RequestError: Too many stop strings, or drafts of no known kind.
    """
    stop = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
    # The client's own come first, so that those of the format give way if there are too many.
    stop = (stop + template_stops)[: max(len(stop), STOP_STRINGS_MAX)]
    if len(stop) > STOP_STRINGS_MAX:
        raise RequestError(f"stop: at most {STOP_STRINGS_MAX} strings", param="stop", code="invalid_value")
    return SamplingParams(
        max_tokens=room_tokens if max_tokens is None else min(max_tokens, room_tokens),
        temperature=TEMPERATURE_DEFAULT if body.temperature is None else body.temperature,
        top_k=max(body.top_k or 0, 0),
        top_p=1.0 if body.top_p is None else max(body.top_p, TOP_P_MIN),
        min_p=body.min_p or 0.0,
        repetition_penalty=1.0 if body.repetition_penalty is None else body.repetition_penalty,
        frequency_penalty=body.frequency_penalty or 0.0,
        presence_penalty=body.presence_penalty or 0.0,
        logit_bias=_logit_bias(body.logit_bias or {}),
        seed=None if body.seed is None else (body.seed + copy) & SEED_MASK,
        stop=stop,
        ignore_eos=bool(body.ignore_eos),
        logprobs=logprobs,
        json_schema=_json_schema(body),
        drafts=_drafts(body),
    )


def _drafts(body: GenerationFields) -> DraftMode | None:
    if body.meshmoe is None or body.meshmoe.drafts is None:
        return None
    try:
        return parse_draft_mode(str(body.meshmoe.drafts))
    except ConfigError as error:
        raise RequestError(f"meshmoe.drafts: {error}", param="meshmoe", code="invalid_value") from None


def _logit_bias(named: dict[str, float]) -> tuple[tuple[int, float], ...]:
    """Biases by token; of two spellings of one id the later counts, as of a name that JSON has twice."""
    return tuple(sorted({int(token): bias for token, bias in named.items()}.items()))


def _json_schema(body: GenerationFields) -> str | None:
    """The schema that the text must follow, as JSON; the engine says whether it can be held to."""
    match body.response_format:
        case JsonObjectFormat():
            return _ANY_OBJECT
        case JsonSchemaFormat(json_schema=named):
            return _ANY_OBJECT if named.schema is None else msgspec.json.encode(named.schema).decode()
    return None
