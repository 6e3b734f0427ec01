"""What does not fit the model is refused before anything is computed: requests of users, and calls of peers."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from meshmoe.core.errors import RequestError
from meshmoe.engine.dispatch import CALL_ROWS_MAX
from meshmoe.engine.kernels.choice import is_plain
from meshmoe.engine.model import MoeModel
from meshmoe.engine.request import GenerationRequest
from meshmoe.engine.sampling import check_params
from meshmoe.model.experts_modules import ExpertWeights
from meshmoe.wire.frames import HEADER_BYTES_MAX, PARCEL_BYTES_MAX


def check_request(request: GenerationRequest, model: MoeModel, room_tokens: int) -> int:
    """Check a request.

    Args:
        request: What was asked for.
        model: Who would answer.
        room_tokens: Tokens that one request has room for when it is alone.

    Returns:
        How many tokens it may write.

    Raises:
        RequestError: It makes no sense for this model; the message has the numbers.
    """
    check_params(request.sampling, model.vocabulary_size)
    prompt, context = request.prompt_ids, model.context_length
    if not prompt:
        raise RequestError("the prompt is empty; send at least one token", param="prompt")
    if len(prompt) >= context:
        raise RequestError(
            f"this prompt has {len(prompt)} tokens; the model's context is {context}, of which at least one is for "
            "the answer; shorten the prompt",
            param="prompt",
            code="context_length_exceeded",
        )
    if not 0 <= min(prompt) <= max(prompt) < model.vocabulary_size:
        raise RequestError(
            f"the prompt has token ids outside of the model's vocabulary of {model.vocabulary_size}; was it "
            "made with another model's tokenizer?",
            param="prompt",
        )
    room = min(context, room_tokens) - len(prompt)
    if room < 1:
        raise RequestError(
            f"this prompt has {len(prompt)} tokens; the node's key-value cache has room for "
            f"{room_tokens}, of which at least one is for the answer; shorten the prompt, or start the "
            "node with a larger --kv-cache",
            param="prompt",
            code="context_length_exceeded",
        )
    asked = request.sampling.max_tokens
    return room if asked is None else min(asked, room)


def check_call(
    layer: int, rows_by_expert: Sequence[tuple[int, Sequence[int]]], hidden: Tensor, model: MoeModel
) -> list[list[int]]:
    """Check a peer's call; its arguments are those of `Engine.compute_experts`.

    Returns:
        The rows of each expert, spelled out.

    Raises:
        RequestError: It does not fit the model.
    """
    if not 0 <= layer < len(model.layers):
        raise RequestError(f"there is no MoE layer {layer}; the model has {len(model.layers)}")
    if hidden.dim() != 2 or hidden.dtype != model.dtype or not 0 < len(hidden) <= CALL_ROWS_MAX:
        raise RequestError(
            f"hidden states are {list(hidden.shape)} {hidden.dtype}; expected 1 to {CALL_ROWS_MAX} rows of "
            f"{model.dtype}"
        )
    count, n_experts = len(hidden), model.layers[layer].n_experts
    row_bytes = hidden.shape[1] * hidden.element_size()
    if sum(len(numbers) or count for _, numbers in rows_by_expert) * row_bytes > PARCEL_BYTES_MAX - HEADER_BYTES_MAX:
        # Every expert may ask for every row: a small call could have an answer of gigabytes.
        raise RequestError(f"an expert call asks for more than the {PARCEL_BYTES_MAX >> 20} MiB of an answer")
    rows = [list(numbers) or list(range(count)) for _, numbers in rows_by_expert]
    if not rows or any(not 0 <= index < n_experts for index, _ in rows_by_expert):
        raise RequestError(f"an expert call for layer {layer} must name experts from 0 to {n_experts - 1}")
    if any(not 0 <= min(numbers) <= max(numbers) < count for numbers in rows):
        raise RequestError(f"an expert call names rows outside of its {count} hidden states")
    return rows


def check_width(module: nn.Module, held: Sequence[ExpertWeights], hidden: Tensor) -> None:
    """See that the rows are as wide as the weights: compiled kernels do not look, and would read past their end.

    Raises:
        RequestError: They are not.
    """
    width = hidden.shape[1]
    if any(w["gate_up_proj"].shape[1] != width for w in held if "gate_up_proj" in w) and is_plain(module):
        raise RequestError(f"an expert call has hidden states of width {width}, which the experts do not take")
