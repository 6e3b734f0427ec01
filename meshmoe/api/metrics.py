"""``GET /metrics``: what Prometheus scrapes. The names are documented in docs/operations.md.

Nothing is counted here: a scrape turns the node's own counters and the shared status into metric families.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import Response

from meshmoe.api.status_feed import StatusFeed
from meshmoe.node.meters import BUCKETS_S, LatencyMeter, Meters
from meshmoe.node.status import NodeStatus


async def metrics(request: Request) -> Response:
    """Answer ``GET /metrics``."""
    feed: StatusFeed = request.app.state.feed
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_NodeCollector(feed.status(), request.app.state.service.meters()))
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_PLAIN_0_0_4)


class _NodeCollector(Collector):
    """One scrape."""

    def __init__(self, status: NodeStatus, meters: Meters) -> None:
        self._status = status
        self._meters = meters

    def collect(self) -> Iterator[Metric]:
        """All families."""
        yield from self._node()
        yield from self._requests()
        yield from self._experts()
        yield from self._peers()

    def _node(self) -> Iterator[Metric]:
        status = self._status
        model = status.model.name if status.model is not None else ""
        about = {"node": status.node, "software": status.software, "model": model}
        yield InfoMetricFamily("meshmoe_node", "This node", value=about)
        yield GaugeMetricFamily("meshmoe_ready", "Whether a request would be served now", int(status.serving.ready))
        yield GaugeMetricFamily("meshmoe_uptime_seconds", "Since the node's start", status.uptime_s)
        yield GaugeMetricFamily("meshmoe_resident_memory_bytes", "Memory of the process", status.rss_bytes)
        late = "Lateness of the event loop, 99th percentile of the last half minute"
        yield GaugeMetricFamily("meshmoe_event_loop_late_seconds", late, status.loop_late_p99_ms / 1000)
        yield _counters("meshmoe_faults", "What went wrong, by kind", "kind", status.faults)

    def _requests(self) -> Iterator[Metric]:
        serving, totals = self._status.serving, self._meters.totals
        outcomes = {"finished": serving.finished, "failed": serving.failed, "cancelled": serving.cancelled}
        yield _counters("meshmoe_requests", "Requests that ended, by how", "outcome", outcomes)
        yield GaugeMetricFamily("meshmoe_requests_active", "Requests that generate", serving.active)
        yield GaugeMetricFamily("meshmoe_requests_queued", "Requests that wait for a place", serving.queued)
        tokens = {"prompt": totals.prompt_tokens, "completion": totals.completion_tokens}
        yield _counters("meshmoe_tokens", "Tokens of finished requests", "kind", tokens)
        first, between = self._meters.first_token, self._meters.between_tokens
        yield _histogram("meshmoe_time_to_first_token_seconds", "From a request to its first token", first)
        yield _histogram("meshmoe_inter_token_seconds", "From one token of a request to its next", between)
        yield GaugeMetricFamily("meshmoe_tokens_per_second", "Written now, all requests", serving.tokens_per_s_now)
        yield GaugeMetricFamily("meshmoe_compute_busy_ratio", "Of the compute thread's time", serving.busy)
        rounds = {"decode": totals.decode_rounds, "prefill": totals.prefill_rounds}
        yield _counters("meshmoe_rounds", "Layers that waited for another node", "phase", rounds)
        yield CounterMetricFamily("meshmoe_decode_steps", "Steps after the first token", totals.decode_steps)
        yield CounterMetricFamily("meshmoe_decode_tokens", "Tokens that these steps told", totals.decode_tokens)
        drafted = {"right": totals.accepted_tokens, "wrong": totals.drafted_tokens - totals.accepted_tokens}
        yield _counters("meshmoe_drafted_tokens", "Tokens guessed ahead, by what became of them", "outcome", drafted)

    def _experts(self) -> Iterator[Metric]:
        status, totals = self._status, self._meters.totals
        calls = {"local": totals.expert_calls_local, "remote": totals.expert_calls_remote}
        yield _counters("meshmoe_expert_calls", "(token, expert) pairs of own requests", "where", calls)
        served = "(token, expert) pairs computed for other nodes"
        yield CounterMetricFamily("meshmoe_expert_calls_served", served, status.serving.expert_calls_served)
        if status.serving.hit_ratio is not None:
            hit = "Share of expert calls served locally, recent requests"
            yield GaugeMetricFamily("meshmoe_hit_ratio", hit, status.serving.hit_ratio)
        if status.serving.rounds_per_token is not None:
            rounds = "Rounds a decoded token, recent requests"
            yield GaugeMetricFamily("meshmoe_rounds_per_token", rounds, status.serving.rounds_per_token)
        if status.coverage is not None:
            yield GaugeMetricFamily("meshmoe_experts", "Experts of the model", status.coverage.total)
            yield GaugeMetricFamily("meshmoe_experts_covered", "Experts with a holder", status.coverage.covered)
            yield GaugeMetricFamily("meshmoe_replicas_mean", "Holders an expert", status.coverage.replicas_mean)
            missing = "Capacity that the mesh lacks"
            yield GaugeMetricFamily("meshmoe_capacity_missing_bytes", missing, status.coverage.missing_bytes)
        if status.agreement is not None:
            agreed = "Whether all present nodes see the same holders"
            yield GaugeMetricFamily("meshmoe_agreed", agreed, int(status.agreement.equal))
        if status.custody is not None:
            custody = status.custody
            yield GaugeMetricFamily("meshmoe_experts_in_custody", "That this node keeps", custody.experts)
            yield GaugeMetricFamily("meshmoe_experts_lost", "That no present node has", custody.lost_total)
            yield GaugeMetricFamily("meshmoe_migrations_active", "Given and taken", custody.migrations)
            yield GaugeMetricFamily("meshmoe_intakes_active", "Experts on their way in", custody.intakes)
            moved = {"given": custody.given, "taken": custody.taken}
            yield _counters("meshmoe_migrations", "Migrations that moved an expert", "direction", moved)

    def _peers(self) -> Iterator[Metric]:
        others = [peer for peer in self._status.peers if not peer.is_self]
        states = dict.fromkeys(("alive", "suspect", "joining", "leaving", "dead", "left"), 0)
        for peer in self._status.peers:
            states[peer.state] = states.get(peer.state, 0) + 1
        nodes = GaugeMetricFamily("meshmoe_nodes", "Nodes of the mesh, by state", labels=["state"])
        for state, count in states.items():
            nodes.add_metric([state], count)
        yield nodes
        for name, about, attribute in (
            ("meshmoe_peer_sent_bytes", "Sent to a peer", "sent_bytes"),
            ("meshmoe_peer_received_bytes", "Received from a peer", "received_bytes"),
            ("meshmoe_peer_expert_calls", "(token, expert) pairs that a peer computed for this node", "expert_calls"),
        ):
            yield _counters(name, about, "peer", {peer.node: getattr(peer, attribute) for peer in others})
        rtt = GaugeMetricFamily("meshmoe_peer_rtt_seconds", "Median round trip of probes", labels=["peer"])
        for peer in others:
            if peer.rtt_ms is not None:
                rtt.add_metric([peer.node], peer.rtt_ms / 1000)
        yield rtt


def _counters(name: str, about: str, label: str, values: dict[str, int]) -> Metric:
    family = CounterMetricFamily(name, about, labels=[label])
    for value, count in values.items():
        family.add_metric([value], count)
    return family


def _histogram(name: str, about: str, meter: LatencyMeter) -> Metric:
    bounds = [*map(str, BUCKETS_S), "+Inf"]
    buckets = list(zip(bounds, map(float, accumulate(meter.counts)), strict=True))
    return HistogramMetricFamily(name, about, buckets=buckets, sum_value=meter.total_s)
