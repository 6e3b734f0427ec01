"""The part of a node's status that tells what it keeps, what it hands over, and what is on its way in."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshmoe.custody import Reception
from meshmoe.model.unit_names import UnitName
from meshmoe.node.custody_driver import now_s
from meshmoe.node.status import CustodyStatus, MigrationEndStatus, MigrationStatus, TransferStatus

if TYPE_CHECKING:
    from meshmoe.node.node import Node
    from meshmoe.node.parts import Parts

LOST_SHOWN_MAX = 64
"""Names of lost experts in the status; all of them are counted."""


def custody_status(parts: Parts) -> CustodyStatus | None:
    """What this node has promised to keep; None until the model is known."""
    custody = parts.custody
    if custody.machine is None:
        return None
    return CustodyStatus(
        experts=len(custody.machine.custody),
        intakes=custody.machine.intakes,
        migrations=custody.machine.migrations,
        lost=[str(expert) for expert in sorted(custody.lost)[:LOST_SHOWN_MAX]],
        lost_total=len(custody.lost),
        given=custody.counts["migrations_given"],
        taken=custody.counts["migrations_taken"],
    )


def transfers(node: Node) -> list[TransferStatus]:
    """Weights on their way to this node."""
    found = []
    if node.progress is not None and node.phase == "loading":
        what, done, total = node.progress
        found.append(TransferStatus(what=what, source="disk", done_bytes=done, total_bytes=total))
    if node.parts is not None:
        found += [
            TransferStatus(what=str(t.unit), source=t.peer, done_bytes=t.done_bytes, total_bytes=t.total_bytes)
            for t in node.parts.unit_client.transfers.values()
        ]
    return found


def migrations_under_way(parts: Parts) -> list[MigrationStatus]:
    """Migrations that this node gives and takes."""
    machine = parts.custody.machine
    if machine is None:
        return []
    found = []
    for each in machine.under_way:
        taking = isinstance(each, Reception)
        transfer = parts.unit_client.transfers.get(UnitName.of_expert(each.expert)) if taking else None
        found.append(
            MigrationStatus(
                expert=str(each.expert),
                peer=each.peer,
                direction="taking" if taking else "giving",
                state=each.state.name.lower(),
                done_bytes=transfer.done_bytes if transfer is not None else 0,
                total_bytes=transfer.total_bytes if transfer is not None else 0,
            )
        )
    return found


def migrations_ended(parts: Parts) -> list[MigrationEndStatus]:
    """The last ones, the latest first."""
    now = now_s()
    return [
        MigrationEndStatus(
            expert=str(ended.expert),
            peer=ended.peer,
            outcome=ended.outcome,
            reason=ended.reason,
            ago_s=round(now - at_s, 1),
        )
        for at_s, ended in reversed(parts.custody.migrations)
    ]
