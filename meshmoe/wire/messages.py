"""The messages of the runtime: joining, expert calls, transfers of weights.

On the wire a message is a msgpack map with the tag ``t`` and the protocol version ``v``; `meshmoe.wire.codec` packs and
validates it. Bounds that a type can state stand here, so that a hostile value fails in validation; bounds that need the
model (does layer 7 have 64 experts?) are checked by whoever serves the message. The messages of membership and gossip
are defined beside their machines and joined to the union in `meshmoe.wire.codec`.

Lanes: *control* carries hello, welcome, refusals, probes and gossip; *data* carries expert calls and their
replies; *bulk* carries weights and files.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from meshmoe.admission.messages import AdmissionRecord, Digest32, MeshSecret
from meshmoe.core.endpoints import Endpoints
from meshmoe.core.messages import (
    ByteCount,
    CallId,
    Digest,
    ExpertIndex,
    Generation,
    LayerIndex,
    Message,
    NodeName,
    ShortText,
)
from meshmoe.core.token import TokenId, WallClockS

PROTOCOL_VERSION = 2
"""Grows with every change that an older node would misread; nodes of another version are refused by name."""

ROWS_MAX = 8192
"""Rows of hidden states in one expert call: more than any prefill chunk."""

CHUNK_BYTES = 1 << 20
"""Bytes of one chunk of weights: small enough that a 100 Mbit/s link passes it in 84 ms, large enough to fill 1 GbE."""

Rows = Annotated[list[Annotated[int, Meta(ge=0, lt=ROWS_MAX)]], Meta(max_length=ROWS_MAX)]


class JoinProof(msgspec.Struct, frozen=True, array_like=True):
    """What a newcomer shows: by which token, and that it has the token's secret (`meshmoe.admission.proofs`)."""

    token: TokenId
    expires_s: WallClockS
    proof: Digest32


class Hello(Message, frozen=True, tag="hello"):
    """A node introduces itself, to join or to renew an acquaintance. Control lane."""

    node: NodeName
    generation: Generation
    endpoints: Endpoints
    software: ShortText
    model_digest: Digest | None = None
    """The model that the sender has files of; None when it will take the mesh's."""
    proof: JoinProof | None = None
    """Of a newcomer with a token; members need none."""


class Welcome(Message, frozen=True, tag="welcome"):
    """Answer to `Hello`: who answers, and which model the mesh serves. Control lane."""

    node: NodeName
    generation: Generation
    endpoints: Endpoints
    software: ShortText
    model_digest: Digest
    model_name: ShortText
    """Under which every node of the mesh lists the model."""
    manifest_bytes: ByteCount
    admission: tuple[MeshSecret, AdmissionRecord] | None = None
    """The mesh's secret, and the record of who answers; None in an insecure mesh."""


class Refusal(Message, frozen=True, tag="refusal"):
    """Answer to `Hello` that ends a join, with the reason in words for the person who tried. Control lane.

    A member that is expelled gets one, too, unasked.
    """

    node: NodeName
    generation: Generation
    reason: Literal["other_model", "name_taken", "not_admitted", "expelled"]
    text: ShortText


class ExpertRows(msgspec.Struct, array_like=True, frozen=True):
    """One expert of a call and the rows of the call's tensor that it computes; no rows means all of them."""

    index: ExpertIndex
    rows: Rows = []


class ExpertCall(Message, frozen=True, tag="call"):
    """Compute some experts of one layer. Data lane; one tensor ``[U, H]``: the distinct hidden states.

    The reply's tensor has the experts' outputs one after the other, in the order and with the rows asked for. Router
    weights are not sent: they stay with the caller, who sums (DESIGN: exactness).
    """

    id: CallId
    layer: LayerIndex
    experts: Annotated[list[ExpertRows], Meta(min_length=1, max_length=1024)]
    budget_ms: Annotated[int, Meta(ge=1, le=600_000)]
    """How long the caller will wait; a call that cannot be served within it is not worth starting."""
    decode: bool = True
    """Whether a person waits for this very token (decode) or for a prompt to be read (prefill)."""


class ExpertReply(Message, frozen=True, tag="reply"):
    """Outputs of an `ExpertCall`. Data lane; one tensor ``[sum of rows, H]``."""

    id: CallId
    compute_us: Annotated[int, Meta(ge=0, lt=1 << 40)] = 0
    """Time from arrival to reply at the holder, so that the caller can tell link from queue."""


class ExpertMoved(Message, frozen=True, tag="moved"):
    """The callee lacks some experts of the call and computed none of it; it names holders that it knows. Data lane."""

    id: CallId
    lacking: Annotated[list[tuple[ExpertIndex, NodeName | None]], Meta(min_length=1, max_length=1024)]


class CallFailed(Message, frozen=True, tag="failed"):
    """The callee could not serve the call and says why. Data lane."""

    id: CallId
    reason: Literal["busy", "bad_call", "stopping", "error"]
    text: ShortText = ""


class CallCancel(Message, frozen=True, tag="cancel"):
    """The caller no longer wants the answer. Data lane."""

    id: CallId


class Unit(msgspec.Struct, array_like=True, frozen=True):
    """What can be transferred: the manifest, one of its small files, the trunk, or one expert's weights."""

    kind: Literal["manifest", "file", "trunk", "expert"]
    name: Annotated[str, Meta(max_length=64)] = ""
    layer: LayerIndex = 0
    index: ExpertIndex = 0


class UnitRequest(Message, frozen=True, tag="want"):
    """Ask for a piece of a unit. Bulk lane. The asker keeps only a few requests in flight: that is its credit."""

    id: CallId
    unit: Unit
    offset: ByteCount
    length: Annotated[int, Meta(ge=1, le=CHUNK_BYTES)]


class UnitChunk(Message, frozen=True, tag="chunk"):
    """A piece of a unit. Bulk lane; one raw frame with the bytes."""

    id: CallId
    unit: Unit
    offset: ByteCount
    total_bytes: ByteCount


class UnitLacking(Message, frozen=True, tag="lacking"):
    """The callee does not have the unit (any more). Bulk lane."""

    id: CallId
    unit: Unit


RUNTIME_MESSAGES = (
    Hello,
    Welcome,
    Refusal,
    ExpertCall,
    ExpertReply,
    ExpertMoved,
    CallFailed,
    CallCancel,
    UnitRequest,
    UnitChunk,
    UnitLacking,
)
