"""What a node tells about itself and its mesh: the stable schema behind ``meshmoe status --json``.

Every field is documented in docs/operations.md; names carry their units. Fields may be added; none changes its meaning
or goes away without a new ``schema`` number.
"""

from __future__ import annotations

import msgspec

SCHEMA = 1


class PeerStatus(msgspec.Struct, kw_only=True):
    """One node of the mesh as this node sees it (this node included).

    Attributes:
        node: Its name.
        state: ``alive``, ``suspect``, ``dead``, ``left`` (membership), or ``joining`` while it loads the trunk.
        is_self: Whether it is the node that answers.
        address: ``host:port`` of its control lane.
        capacity_bytes: What it may use for experts.
        held_bytes: What its resident experts take.
        experts_held: Number of resident experts.
        rtt_ms: Round trip to it as measured by probes; None for itself, or before the first.
        rate_bytes_per_s: Bandwidth as measured by real transfers to or from it; None before the first.
        sent_bytes: Bytes sent to it since this node started.
        received_bytes: Bytes received from it since then.
        expert_calls: (token, expert) pairs that it computed for this node.
        software: Its meshmoe version.
        expert_call_us: Time that it takes to compute one expert for one token, as it tells; 0 if it does not.
    """

    node: str
    state: str
    is_self: bool
    address: str
    capacity_bytes: int
    held_bytes: int
    experts_held: int
    rtt_ms: float | None = None
    rate_bytes_per_s: float | None = None
    sent_bytes: int = 0
    received_bytes: int = 0
    expert_calls: int = 0
    software: str = ""
    expert_call_us: int = 0


class LinkStatus(msgspec.Struct, kw_only=True):
    """A link between two nodes of the mesh, as either of them has measured it last.

    Attributes:
        nodes: The two names, in order.
        rtt_ms: Median round trip of probes.
        rate_bytes_per_s: Bandwidth, from real transfers; None before the first.
    """

    nodes: tuple[str, str]
    rtt_ms: float | None = None
    rate_bytes_per_s: float | None = None


class ModelStatus(msgspec.Struct, kw_only=True):
    """The model that the mesh serves.

    Attributes:
        name: As the API lists it.
        digest: 40 hex digits that all nodes of the mesh share.
        family: transformers model type.
        dtype: Dtype of computation and of the wire.
        moe_layers: Layers with routed experts.
        experts: Routed experts in all layers.
        expert_bytes_total: Bytes of all routed experts.
        trunk_bytes: Bytes of everything else, held by every node.
        context_tokens: Longest sequence.
    """

    name: str
    digest: str
    family: str
    dtype: str
    moe_layers: int
    experts: int
    expert_bytes_total: int
    trunk_bytes: int
    context_tokens: int


class CoverageStatus(msgspec.Struct, kw_only=True):
    """Whether every expert has a holder that can be reached.

    Attributes:
        covered: Experts with at least one holder.
        total: Experts of the model.
        replicas_mean: Holders an expert, mean over covered experts.
        missing_bytes: Capacity that the mesh lacks to hold every expert once; 0 when it is enough.
        holder_map_digest: Digest of who holds what in this node's view; equal on all nodes when they agree.
        holders_by_layer: For each MoE layer, for each expert, the indices into ``peers`` of its holders.
    """

    covered: int
    total: int
    replicas_mean: float
    missing_bytes: int
    holder_map_digest: str
    holders_by_layer: list[list[list[int]]] = []


class LatencyStatus(msgspec.Struct, kw_only=True):
    """What this node's own clients wait for, over the last 1,024 of each; None before the first.

    Attributes:
        first_token_ms_p50: From the arrival of a request to its first token, median.
        first_token_ms_p99: The same, 99th percentile.
        token_ms_p50: From one token of a request to its next, median.
        token_ms_p99: The same, 99th percentile.
    """

    first_token_ms_p50: float | None = None
    first_token_ms_p99: float | None = None
    token_ms_p50: float | None = None
    token_ms_p99: float | None = None


class ServingStatus(msgspec.Struct, kw_only=True):
    """This node's own requests since it started, unless said otherwise.

    Attributes:
        ready: Whether a request would be served now.
        reason: Why not, in words; empty when ready.
        active: Requests in progress.
        queued: Requests waiting for a place.
        finished: Requests that ended with all their text.
        failed: Requests that ended with an error.
        cancelled: Requests whose client went away.
        completion_tokens: Tokens written.
        tokens_per_s: Tokens a second that one request sees, prompt included, over the last 64 finished requests.
        hit_ratio: Share of expert calls served locally; None before the first.
        rounds_per_token: Rounds a decoded token; None before the first.
        tokens_per_pass: Tokens that a decode pass told; more than 1 where drafts were right; None before the first.
        drafted_per_pass: Tokens guessed for a decode pass, on average: K; None before the first.
        acceptance: Share of drafted tokens that were right; None where none was drafted.
        expert_calls_served: (token, expert) pairs computed here for other nodes.
        calls_recent: Decode calls to peers that were answered in the last 10 s.
        call_p50_ms: Their median, from sending to answer; 0 when there were none.
        call_p99_ms: Their 99th percentile.
        hedges: Late decode calls that were sent to a second holder, too (``meshmoe join --hedge``).
        hedges_won: Those that the second holder answered first.
        tokens_per_s_now: Tokens a second that this node writes, all requests together, over the last ten seconds.
        busy: Share of that time in which the compute thread computed.
        latency: What clients wait for.
    """

    ready: bool
    reason: str
    active: int = 0
    queued: int = 0
    finished: int = 0
    failed: int = 0
    cancelled: int = 0
    completion_tokens: int = 0
    tokens_per_s: float = 0.0
    hit_ratio: float | None = None
    rounds_per_token: float | None = None
    tokens_per_pass: float | None = None
    drafted_per_pass: float | None = None
    acceptance: float | None = None
    expert_calls_served: int = 0
    calls_recent: int = 0
    call_p50_ms: float = 0.0
    call_p99_ms: float = 0.0
    hedges: int = 0
    hedges_won: int = 0
    tokens_per_s_now: float = 0.0
    busy: float = 0.0
    latency: LatencyStatus = msgspec.field(default_factory=LatencyStatus)


class CustodyStatus(msgspec.Struct, kw_only=True):
    """What this node has promised to keep for the mesh.

    Attributes:
        experts: Experts in its custody.
        intakes: Experts whose weights are on their way in.
        migrations: Migrations under way, given and taken.
        lost: Experts that no present node holds or stores, the first 64: requests that need one fail.
        lost_total: How many there are.
        given: Migrations that have handed an expert over since this node started.
        taken: Migrations that have brought one.
    """

    experts: int
    intakes: int
    migrations: int
    lost: list[str]
    lost_total: int
    given: int = 0
    taken: int = 0


class MigrationStatus(msgspec.Struct, kw_only=True):
    """A migration under way at this node.

    Attributes:
        expert: ``layer/index``.
        peer: The other end.
        direction: ``giving`` or ``taking``.
        state: ``offered``, ``serving``, ``confirming``, ``draining`` at the donor, ``fetching``, ``claimed`` at the
            receiver; see `meshmoe.custody.migration`.
        done_bytes: Received so far; 0 at the donor, which does not know.
        total_bytes: Of the expert.
    """

    expert: str
    peer: str
    direction: str
    state: str
    done_bytes: int = 0
    total_bytes: int = 0


class MigrationEndStatus(msgspec.Struct, kw_only=True):
    """A migration of this node's that is over.

    Attributes:
        expert: ``layer/index``.
        peer: The other end.
        outcome: ``given`` or ``kept`` at the donor, ``taken`` or ``forgotten`` at the receiver.
        reason: Why it was kept or forgotten; empty otherwise.
        ago_s: Seconds since.
    """

    expert: str
    peer: str
    outcome: str
    reason: str
    ago_s: float


class AgreementStatus(msgspec.Struct, kw_only=True):
    """Whether nodes see the same holders.

    Attributes:
        digest: Digest of who holds what in this node's view.
        equal: Whether every present node has published the same.
        differ: Nodes that published another one, or none yet.
    """

    digest: str
    equal: bool
    differ: list[str]


class ExchangeStatus(msgspec.Struct, kw_only=True):
    """A change of this node's plan: why experts move.

    Attributes:
        at_s: Wall clock.
        partner: With whom it was agreed; None for a choice of copies of this node's own, and for experts adopted.
        plan_version: Of the plan after it.
        adds: Experts to hold from then on.
        drops: Experts not to hold any more.
        gained: How many experts this node came to own by it.
        given: How many it gave away.
        gain_ms_per_token: What both nodes save of a token together, predicted.
        cost_bytes: Weights that have to move here.
        cost_s: How long they take on the link to the partner.
    """

    at_s: float
    partner: str | None
    plan_version: int
    adds: list[str]
    drops: list[str]
    gained: int
    given: int
    gain_ms_per_token: float
    cost_bytes: int
    cost_s: float


class PlacementStatus(msgspec.Struct, kw_only=True):
    """What placement does on this node.

    Attributes:
        rule: What weights follow: ``guardian`` while there is no demand to speak of, then ``exchange``.
        plan_version: Of this node's plan; 0 without one.
        quiet: Whether it knows of no exchange that would gain anything.
        settled: How often plans have come to rest and weights have begun to move.
        decision_ms_max: Longest that one decision has taken; it is taken beside the loop.
        exchanges: Last changes of the plan, at most 32, oldest first.
    """

    rule: str
    plan_version: int
    quiet: bool
    settled: int
    decision_ms_max: float
    exchanges: list[ExchangeStatus]


class TransferStatus(msgspec.Struct, kw_only=True):
    """Weights on their way to this node.

    Attributes:
        what: ``trunk``, ``expert 3/17``, ``tokenizer.json``.
        source: ``disk``, or the peer's name.
        done_bytes: Received and written so far.
        total_bytes: Size of the whole.
    """

    what: str
    source: str
    done_bytes: int
    total_bytes: int


class SpotCheckStatus(msgspec.Struct, kw_only=True):
    """Answers of peers that another one computed once more.

    Attributes:
        made: Checks that came to a result.
        differing_bits: Answers that were the same but for the last bits.
        disagreements: Answers of which one must be wrong; the log names both peers.
    """

    made: int
    differing_bits: int
    disagreements: int


class NodeStatus(msgspec.Struct, kw_only=True):
    """Everything that ``meshmoe status`` shows.

    Attributes:
        schema: Number of this schema.
        node: This node's name.
        generation: Milliseconds of wall clock at its start.
        software: Its meshmoe version.
        uptime_s: Seconds since it started.
        phase: ``starting``, ``fetching``, ``loading``, ``serving``, ``leaving``.
        rss_bytes: Resident memory of the process.
        model: None until it is known.
        peers: All known nodes, this one first, then by name.
        coverage: None until the model is known.
        serving: This node's requests.
        transfers: Weights on their way in.
        experts_wanted: Experts that placement wants resident on this node.
        custody: None until the model is known.
        loop_late_p99_ms: Lateness of the event loop, 99th percentile of the last half minute.
        join_command: What to type on another box; it has a token, so it is told on the Unix socket only.
        faults_by_peer: The same of members, by name: what is not as it should be in what they send.
        spot_checks: With ``--spot-check`` only.
        secured: Whether connections are encrypted and admission is by key; false only with ``--insecure``.
        members: Keys that belong to the mesh, those of nodes that are not here now included.
        placement: None until the model is known.
        agreement: None until the model is known.
        join_command: What to type on another box.
        faults: Counters of what went wrong: bad messages by kind, timeouts, retries.
        links: Links of the mesh whose ends have measured them, this node's own included.
        migrations: Under way at this node.
        migrations_ended: The last 32, the latest first.
    """

    node: str
    generation: int
    software: str
    uptime_s: float
    phase: str
    rss_bytes: int
    model: ModelStatus | None
    peers: list[PeerStatus]
    coverage: CoverageStatus | None
    serving: ServingStatus
    transfers: list[TransferStatus]
    experts_wanted: int
    join_command: str
    faults: dict[str, int]
    custody: CustodyStatus | None = None
    loop_late_p99_ms: float = 0.0
    faults_by_peer: dict[str, dict[str, int]] = {}
    spot_checks: SpotCheckStatus | None = None
    secured: bool = True
    members: int = 0
    links: list[LinkStatus] = []
    migrations: list[MigrationStatus] = []
    migrations_ended: list[MigrationEndStatus] = []
    placement: PlacementStatus | None = None
    agreement: AgreementStatus | None = None
    schema: int = SCHEMA
