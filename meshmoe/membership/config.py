"""Every number of the failure detector, with its formula and what happens when it is changed.

Two presets, `LAN` and `WAN`; all nodes of a mesh should run the same one. ``n`` is the number of members believed alive
or suspect, this node included; ``log10`` is the decimal logarithm. The shape of the knobs follows memberlist's
``config.go``; where a formula differs from memberlist's, the text says why (docs/decisions/membership-swim.md has the
measurements).
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class MembershipConfig:
    """Knobs of `meshmoe.membership.Membership`. The defaults are the ``lan`` preset.

    Attributes:
        probe_interval_s: A probe of the next member begins each ``probe_interval_s * (1 + health score)``, in a
            shuffled round robin. A failed member is probed by somebody after ``probe_interval_s / (1 - 1/e)`` on
            average (SWIM, section 3.1), by a given node within ``2 n`` intervals. Lower finds failures sooner and
            costs a probe and an ack (105 bytes together) an interval.
        probe_window_s: A probe has failed when nobody answered within ``probe_window_s * (1 + health score)``. It is
            the unit of all suspicion times too. Longer than the interval, probes overlap.
        probe_timeout_s: Silence after which relays are asked to probe too. Set it above the 99th percentile of the
            round trip, scheduling of a busy box included. It is not scaled by health (as in memberlist): waiting longer
            does not bring a lost datagram back; the time after it is what grows.
        probe_retry_s: While unanswered, the same probe is sent again after each such time until the window ends:
            ``probe_window_s / probe_retry_s`` attempts. SWIM sends one and memberlist adds a TCP ping, whose
            retransmissions do the same job. With a loss rate ``p`` each way all attempts fail with probability
            ``(1 - (1-p)**2) ** attempts``: at 50 % loss 10 % with 8 attempts where one attempt fails in 75 %. A lower
            value costs nothing while peers answer, since answers end the retries.
        indirect_probes: How many relays are asked. More find a way around a broken link more often, at one message to
            each and one probe from each.
        nack_share: A relay that has no answer says so (nack) after this share of the time that the prober has left.
            Below one, or the nack comes too late to prove the relay's path sound.
        suspicion_mult, suspicion_log_mult: The least time from suspicion to death:
            ``probe_window_s * (suspicion_mult + suspicion_log_mult * log10(n))``.
            The first term is time for the suspect's verification (every suspecting node probes it window after window),
            the second for its refutation to spread, which takes rounds logarithmic in ``n``. memberlist multiplies
            the two (``mult * log10(n)``), which makes 8 s at 100 nodes; the sum makes 5 s with the same time at 10
            nodes.
        suspicion_max_mult: Without confirmations a suspicion lasts ``suspicion_max_mult`` times the least time. Larger
            gives a node with broken links of its own more time to notice; smaller finds failures sooner where
            confirmations cannot come (few nodes, heavy loss).
        confirmations: Independent accusers, beyond the first, that bring the time down to the least:
            ``max - (max - min) * log(c + 1) / log(k + 1)`` after ``c`` of ``k`` (Lifeguard, LHA-Suspicion). ``k`` is
            never more than ``n - 2``: the mesh without the first accuser and the accused.
        health_max: The local health score stays below this, so probes slow down at most ``health_max`` times.
        late_unit_s: Each so many seconds that the event loop is late worsen the lag score by one.
        late_decay_s: The lag score falls by one in so many seconds without lateness.
        pause_s: An overdue timer by more than this means that the process stood still (SIGSTOP, suspended laptop):
            probes in flight are forgotten, suspicions start anew, nobody is accused on stale clocks. Must exceed what a
            busy but running loop is ever late.
        gossip_interval_s, gossip_fanout: While there is news that has not been sent often enough, it goes to
            ``gossip_fanout`` random members each interval, beside what rides on probes and acks.
        retransmit_mult: Each node sends a piece of news ``retransmit_mult * ceil(log10(n + 1))`` times. With ``r``
            sends each, all but a share ``exp(-r)`` of the nodes hear it without anti-entropy (at loss ``p``:
            ``exp(-r * (1 - p))``).
        piggyback_bytes: News in one message, at most. Keeps a probe within one Ethernet frame.
        sync_interval_s: Each node exchanges its whole table with a random member once in
            ``sync_interval_s * max(1, log2(n / 32) + 1)``: repairs what gossip missed. Costs about ``70 n`` bytes each
            way. After joining, and after somebody came back from the dead, it starts anew at ``probe_window_s`` and
            doubles each time: many may be joining, or a partition healing.
        dead_probe_interval_s: One random dead member is probed each interval, which heals partitions: with ``d`` dead
            and ``m`` living nodes the first contact takes about ``dead_probe_interval_s / m``.
        left_probe_interval_s: One random member that left is probed each interval, at the address where it was: it may
            be back, in a mesh of others who were away when it came (two nodes restarted at once that welcomed each
            other). Costs a connection and a probe an interval for as long as somebody who left is remembered.
        dead_retain_s: A dead member is remembered (and probed) so long, then forgotten.
        left_retain_s: A member that left is remembered so long, so that stale news cannot bring it back.
        conflict_grace_s: Messages of an earlier life within this time after its replacement were in flight; later ones
            prove two living nodes of one name.
        leave_repeats: A leaving node tells everybody so many times, ``gossip_interval_s`` apart.
        members_max: Members remembered in any state; a full table first forgets those that left or died longest ago,
            then ignores newcomers.
        relays_max: Probes made for others at any time; more are refused with a nack.
    """

    probe_interval_s: float = 0.5
    probe_window_s: float = 1.0
    probe_timeout_s: float = 0.3
    probe_retry_s: float = 0.125
    indirect_probes: int = 3
    nack_share: float = 0.8
    suspicion_mult: float = 3.0
    suspicion_log_mult: float = 1.0
    suspicion_max_mult: float = 3.0
    confirmations: int = 3
    health_max: int = 8
    late_unit_s: float = 0.25
    late_decay_s: float = 2.0
    pause_s: float = 2.0
    gossip_interval_s: float = 0.2
    gossip_fanout: int = 3
    retransmit_mult: int = 4
    piggyback_bytes: int = 1000
    sync_interval_s: float = 15.0
    dead_probe_interval_s: float = 2.0
    left_probe_interval_s: float = 10.0
    dead_retain_s: float = 3600.0
    left_retain_s: float = 600.0
    conflict_grace_s: float = 3.0
    leave_repeats: int = 3
    members_max: int = 2048
    relays_max: int = 256

    def __post_init__(self) -> None:
        """Refuse combinations in which the protocol cannot work."""
        assert 0 < self.probe_retry_s <= self.probe_window_s
        assert 0 < self.probe_timeout_s < self.probe_window_s
        assert self.late_unit_s <= self.pause_s
        assert self.members_max >= 2 and self.health_max >= 1 and self.confirmations >= 0

    def retransmits(self, n: int) -> int:
        """How often one node sends a piece of news: ``retransmit_mult * ceil(log10(n + 1))``."""
        return self.retransmit_mult * math.ceil(math.log10(n + 1))

    def sync_interval_at_s(self, n: int) -> float:
        """Time between a node's exchanges of the whole table; stretched beyond 32 members (memberlist's rule)."""
        return self.sync_interval_s * max(1.0, math.log2(max(1, n) / 32) + 1)


LAN = MembershipConfig()
"""Round trips below 50 ms: one switch, one house, one campus. Detects in about 6 s at 10 nodes, 7 s at 100."""

WAN = MembershipConfig(
    probe_interval_s=1.5,
    probe_window_s=3.0,
    probe_timeout_s=1.0,
    probe_retry_s=0.5,
    pause_s=6.0,
    gossip_interval_s=0.5,
    gossip_fanout=4,
    sync_interval_s=30.0,
    dead_probe_interval_s=5.0,
    left_probe_interval_s=20.0,
    late_unit_s=0.5,
    conflict_grace_s=5.0,
)
"""Round trips up to 500 ms, with jitter: nodes in different houses. Detects in about 17 s at 10 nodes."""

PRESETS = {"lan": LAN, "wan": WAN}
"""The presets by the name that a profile or a flag gives."""
