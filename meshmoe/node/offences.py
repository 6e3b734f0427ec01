"""What peers do wrong, by peer and kind, and for how long one that goes on is not listened to.

One bad message may be chance: a bit that flipped, a version that differs. Twenty at once, or one a second for long, are
a broken or hostile peer. It is cut off for half a minute, twice as long each further time within the hour, and ten
minutes at most; to the rest of the node it is silent meanwhile, which membership and dispatch know how to live with.
"""

from __future__ import annotations

from collections import Counter, OrderedDict

from meshmoe.core.ids import NodeId

BURST = 20.0
PER_S = 1.0
"""Offences that are let pass: so many at once, then so many a second."""

FIRST_BAN_S = 30.0
LONGEST_BAN_S = 600.0
FORGIVEN_S = 3600.0
"""After so long without a ban the next one is short again."""

PEERS_MAX = 1024


class _Peer:
    """The record of one peer."""

    def __init__(self, now_s: float) -> None:
        self.kinds: Counter[str] = Counter()
        self.credit = BURST
        self.then_s = now_s
        self.banned_until_s = float("-inf")
        self.ban_s = 0.0


class Offences:
    """Plain state; the time is what the caller says."""

    def __init__(self) -> None:
        self._peers: OrderedDict[NodeId, _Peer] = OrderedDict()
        self.bans = 0

    def note(self, peer: NodeId, kind: str, now_s: float) -> float | None:
        """Count an offence.

        Returns:
            For how many seconds the peer is cut off because of it; None if it is let pass.
        """
        record = self._peers.get(peer)
        if record is None:
            if len(self._peers) >= PEERS_MAX:
                self._peers.popitem(last=False)
            record = self._peers[peer] = _Peer(now_s)
        record.kinds[kind] += 1
        record.credit = min(BURST, record.credit + (now_s - record.then_s) * PER_S) - 1.0
        record.then_s = now_s
        if record.credit >= 0 or now_s < record.banned_until_s:
            return None
        again = now_s - record.banned_until_s < FORGIVEN_S
        record.ban_s = min(LONGEST_BAN_S, 2 * record.ban_s) if again and record.ban_s else FIRST_BAN_S
        record.banned_until_s = now_s + record.ban_s
        record.credit = BURST
        self.bans += 1
        return record.ban_s

    def is_banned(self, peer: NodeId, now_s: float) -> bool:
        """Whether the peer is cut off now."""
        if not self.bans:
            return False
        record = self._peers.get(peer)
        return record is not None and now_s < record.banned_until_s

    def by_peer(self) -> dict[str, dict[str, int]]:
        """Counts by peer and kind."""
        return {peer: dict(record.kinds) for peer, record in self._peers.items()}
