"""What a generation is asked for, and what comes out of it.

These types are the boundary between the engine and whoever serves clients (the HTTP API, the tests, the benches): plain
data, no tensors, no sockets.
"""

from __future__ import annotations

import msgspec

from meshmoe.engine.drafts.mode import DraftMode

STOP_STRINGS_MAX = 16
LOGIT_BIAS_MAX = 1024


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True):
    """How the next token is chosen, and when to stop.

    Attributes:
        max_tokens: Tokens to write at most; None means up to the model's context.
        temperature: 0 is greedy; otherwise logits are divided by it.
        top_k: Keep the k likeliest tokens; 0 keeps all.
        top_p: Keep the smallest set of tokens whose probability reaches p (Holtzman et al. 2020); 1 keeps all.
        min_p: Drop tokens below this share of the likeliest one's probability (Nguyen et al. 2024); 0 keeps all.
        repetition_penalty: Divide positive (multiply negative) logits of tokens already seen, in the prompt or since
            (Keskar et al. 2019); 1 leaves them.
        frequency_penalty: Subtracted from a token's logit as often as the token has been written since the prompt.
        presence_penalty: Subtracted once, if the token has been written since the prompt.
        logit_bias: Token ids, each once, with what is added to their logits.
        seed: Seed of this request's own random generator; None draws one.
        stop: Strings that end the text; they are not part of it.
        ignore_eos: Go on past the end-of-text token.
        logprobs: How many of the likeliest tokens to report beside each chosen one; None reports nothing, 0 the chosen
            one only.
        json_schema: A JSON schema, as JSON; the text is a document that it allows, if the tokens suffice.
        drafts: How tokens are guessed ahead, which changes none of them; None leaves it to the node.
    """

    max_tokens: int | None = None
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    json_schema: str | None = None
    drafts: DraftMode | None = None


class GenerationRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One text to be continued: its token ids, and how."""

    prompt_ids: tuple[int, ...]
    sampling: SamplingParams = SamplingParams()


class TokenLogprob(msgspec.Struct, frozen=True):
    """A token with its natural-log probability, from the model's own distribution (before temperature and filters)."""

    token_id: int
    text: str
    logprob: float


class TokenEvent(msgspec.Struct, frozen=True, kw_only=True):
    """A token was written.

    Attributes:
        token_id: Its id.
        text: Text that became certain with it; may be empty (half a character, or a possible stop string), may be more
            than the token's own.
        logprob: Present when asked for.
        top_logprobs: The likeliest tokens, likeliest first, when asked for.
    """

    token_id: int
    text: str
    logprob: float | None = None
    top_logprobs: tuple[TokenLogprob, ...] = ()


class GenerationStats(msgspec.Struct, kw_only=True):
    """What a generation took; grows while it runs.

    Attributes:
        prompt_tokens: Tokens read.
        completion_tokens: Tokens written.
        shared_tokens: Of the prompt, tokens whose keys and values another text had left here.
        queue_s: Waiting for a place among the active requests.
        prefill_s: From then to the first token.
        decode_s: From the first token to the last.
        decode_steps: Forward passes after the first token.
        decode_tokens: Tokens that these passes told; more than passes where drafts were right.
        decode_rounds: Rounds in those passes: layers that had to wait for at least one other node.
        drafted_tokens: Tokens guessed ahead and checked.
        drafted_depth: Of these, the longest branch of every pass: so many could have been right.
        looked_up_depth: Of that depth, in passes whose drafts were only looked up in the text.
        accepted_tokens: Those of them that were right.
        prefill_rounds: Rounds while reading the prompt.
        expert_calls_local: (token, expert) pairs computed here.
        expert_calls_remote: (token, expert) pairs computed elsewhere.
        sent_bytes: Bytes of expert calls sent to peers for this request.
        received_bytes: Bytes of their replies.
        retries: Expert calls that were sent again to another holder.
        remote_wait_s: Time in which the request had nothing to do but wait for peers.
        stalled_s: Of that, spent on calls that had to be asked again, and waiting for experts that nobody held.
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    shared_tokens: int = 0
    queue_s: float = 0.0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    decode_steps: int = 0
    decode_tokens: int = 0
    decode_rounds: int = 0
    drafted_tokens: int = 0
    drafted_depth: int = 0
    looked_up_depth: int = 0
    accepted_tokens: int = 0
    prefill_rounds: int = 0
    expert_calls_local: int = 0
    expert_calls_remote: int = 0
    sent_bytes: int = 0
    received_bytes: int = 0
    retries: int = 0
    remote_wait_s: float = 0.0
    stalled_s: float = 0.0

    @property
    def hit_ratio(self) -> float:
        """Share of expert calls served locally; 1 when there was none."""
        calls = self.expert_calls_local + self.expert_calls_remote
        return self.expert_calls_local / calls if calls else 1.0

    @property
    def rounds_per_token(self) -> float:
        """Rounds a decoded token; 0 when nothing was decoded."""
        return self.decode_rounds / self.decode_tokens if self.decode_tokens else 0.0

    @property
    def tokens_per_pass(self) -> float:
        """Tokens that a decode pass told on average; 1 without drafts, or when nothing was decoded."""
        return self.decode_tokens / self.decode_steps if self.decode_steps else 1.0

    @property
    def acceptance(self) -> float | None:
        """Share of the drafted tokens that were right; None when none was drafted."""
        return self.accepted_tokens / self.drafted_tokens if self.drafted_tokens else None


class FinishEvent(msgspec.Struct, frozen=True, kw_only=True):
    """The last event: why the text ended (``stop``: end-of-text token or stop string; ``length``), and what it took.

    ``text`` is what was still held back, such as the beginning of a stop string that did not complete.
    """

    reason: str
    stats: GenerationStats
    text: str = ""


GenerationEvent = TokenEvent | FinishEvent
