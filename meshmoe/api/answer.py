"""An answer in the making: its choices, their shape, and what stands around them.

The two generation endpoints differ in how a choice looks, which is a `ChoiceShape`; everything else is here.
"""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass, field
from typing import Protocol

from msgspec import UNSET, UnsetType

from meshmoe import __version__
from meshmoe.api.errors import NotServingError
from meshmoe.api.report import GenerationReport, report
from meshmoe.api.request_types import GenerationFields
from meshmoe.api.response_types import ChatChoice, ChunkChoice, CompletionChoice, Envelope, Usage
from meshmoe.api.service import ModelService
from meshmoe.core.errors import MeshmoeError, RequestError
from meshmoe.engine.request import FinishEvent, GenerationRequest, GenerationStats, TokenEvent

AnyChoice = CompletionChoice | ChatChoice | ChunkChoice


class ChoiceShape(Protocol):
    """How one choice looks in an endpoint's responses; one object for each choice, since it counts what it has seen."""

    def opening(self) -> AnyChoice | None:
        """What a stream says before the first token."""
        ...

    def piece(self, event: TokenEvent) -> AnyChoice | None:
        """What a stream says about a token; None if nothing."""
        ...

    def ending(self, event: FinishEvent) -> AnyChoice:
        """What a stream says at the end of the choice."""
        ...

    def whole(self, tokens: list[TokenEvent], finish: FinishEvent) -> AnyChoice:
        """The choice in a response that comes all at once."""
        ...


@dataclass
class Answer:
    """One request's answer.

    Attributes:
        service: The node.
        object: OpenAI's name for the kind of response.
        id_prefix: Beginning of its id.
        generations: What the engine is asked for, one a choice.
        shapes: How each choice looks.
        prompt_tokens: Tokens read; a prompt with several choices counts once, as in OpenAI's usage.
        include_usage: Whether a stream ends with a chunk that carries usage.
    """

    service: ModelService
    object: str
    id_prefix: str
    generations: list[GenerationRequest]
    shapes: list[ChoiceShape]
    prompt_tokens: int
    include_usage: bool = False
    id: str = ""
    created_s: int = 0
    finished: list[GenerationStats] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.id = f"{self.id_prefix}-{secrets.token_hex(12)}"
        self.created_s = int(time.time())

    def usage(self) -> Usage:
        """Tokens read and written, once all choices have finished."""
        written = sum(stats.completion_tokens for stats in self.finished)
        return Usage(self.prompt_tokens, written, self.prompt_tokens + written)

    def report(self) -> GenerationReport:
        """What the mesh did, once all choices have finished."""
        return report(self.finished)

    def envelope(
        self,
        choices: list[AnyChoice],
        usage: Usage | UnsetType | None = UNSET,
        extension: GenerationReport | UnsetType = UNSET,
    ) -> Envelope:
        """Put ``choices`` into a response or a chunk."""
        return Envelope(
            id=self.id,
            object=self.object,
            created=self.created_s,
            model=self.service.model_name,
            system_fingerprint=f"meshmoe-{__version__}",
            choices=choices,  # type: ignore[arg-type]  # one endpoint never mixes them
            usage=usage,
            meshmoe=extension,
        )


def require_model(service: ModelService, body: GenerationFields) -> None:
    """Check the name of the model; absent, and ``default``, mean the one that there is.

    Raises:
        RequestError: 404, another model is meant.
    """
    if body.model not in (None, "default", service.model_name):
        raise unknown_model(service, str(body.model))


def unknown_model(service: ModelService, name: str) -> RequestError:
    """The error for a model that is not here."""
    return RequestError(
        f"the model {name!r} does not exist here: this mesh serves {service.model_name!r}",
        param="model",
        code="model_not_found",
        http_status=404,
    )


def require_ready(service: ModelService) -> None:
    """Check that the node serves.

    Raises:
        MeshmoeError: It does not; never with status 500, since nothing is broken.
    """
    try:
        service.require_ready()
    except MeshmoeError as error:
        if error.http_status != 500:
            raise
        raise NotServingError(str(error)) from error
