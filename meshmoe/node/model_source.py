"""Where this node's weights come from: a checkpoint on its disk, or a store that it fills from peers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import trio

from meshmoe.core.errors import CheckpointError, JoinError, PeerError
from meshmoe.core.ids import NodeId
from meshmoe.model.bundled import bundled_model_dir
from meshmoe.model.checkpoint import Checkpoint
from meshmoe.model.manifest import MANIFEST_BYTES_MAX, Manifest, decode_manifest
from meshmoe.model.source import WeightSource
from meshmoe.model.store import PartialStore, is_store
from meshmoe.model.store_lock import lock_directory
from meshmoe.model.unit_names import MANIFEST_NAME, UnitName
from meshmoe.node.unit_client import UnitClient
from meshmoe.wire.messages import Welcome

logger = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]
"""Told what is being worked on, bytes done, and bytes in all."""


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Weights with their description.

    Attributes:
        source: To read from.
        manifest: Of the model.
        name: As the API lists the model.
        whole: Whether everything is on this node's disk.
    """

    source: WeightSource
    manifest: Manifest
    name: str
    whole: bool


async def open_checkpoint(directory: Path, cache_dir: Path, progress: Progress) -> ModelSource:
    """Open a checkpoint directory and compute (or recall) its digests.

    Raises:
        CheckpointError: It is not usable; the message says why.
    """
    checkpoint = await trio.to_thread.run_sync(Checkpoint.open, directory)
    total_bytes = checkpoint.trunk_bytes + sum(checkpoint.expert_bytes(e) for e in checkpoint.experts())

    def report(done_bytes: int) -> None:
        progress("reading the model for its digest", done_bytes, total_bytes)

    manifest = await trio.to_thread.run_sync(lambda: checkpoint.manifest(report, cache_dir=cache_dir))
    return ModelSource(checkpoint, manifest, model_name(directory), whole=True)


async def open_model(directory: Path, cache_dir: Path, progress: Progress) -> ModelSource:
    """Open what the user names: a whole checkpoint, or a store with part of one.

    Raises:
        CheckpointError: It is not usable; the message says why.
    """
    if await trio.to_thread.run_sync(is_store, directory):
        return await open_store(directory)
    return await open_checkpoint(directory, cache_dir, progress)


async def open_store(directory: Path) -> ModelSource:
    """Open a directory with the trunk and some experts, as `meshmoe model fetch --part` leaves it.

    Raises:
        CheckpointError: It is damaged, incomplete, or another process uses it; the message says what to do.
    """
    store = await trio.to_thread.run_sync(PartialStore.open, directory)
    lock_directory(directory, store)
    missing = store.missing()
    if missing:
        raise CheckpointError(
            f"{directory} lacks {missing[0]}: run the `meshmoe model fetch` that began it again, it goes on"
        )
    await trio.to_thread.run_sync(store.verify_trunk)
    whole = len(store.stored_experts()) == len(store.layout.experts())
    return ModelSource(store, store.manifest, model_name(directory), whole=whole)


async def bundled_if(model_digest: str, cache_dir: Path) -> ModelSource | None:
    """The bundled model, if it is the one with this digest."""
    try:
        bundled = await open_checkpoint(bundled_model_dir(), cache_dir, lambda *_: None)
    except CheckpointError:
        return None
    return bundled if bundled.manifest.model_digest == model_digest else None


async def fetch_model(
    welcome: Welcome,
    store_dir: Path,
    unit_client: UnitClient,
    peers: Callable[[], Sequence[NodeId]],
) -> ModelSource:
    """Get config, tokenizer and trunk of the mesh's model from peers, resuming what an earlier start began.

    Args:
        welcome: Says which model, what it is called, and how large its manifest is.
        store_dir: Where this node's stores lie.
        unit_client: To fetch with.
        peers: Who may have it, best first.

    Raises:
        JoinError: Nobody could give it.
        CheckpointError: The store on disk is damaged in a way that fetching does not mend.
    """
    model_digest = welcome.model_digest
    directory = store_dir / model_digest
    try:
        if not (directory / MANIFEST_NAME).exists():
            manifest = await _fetch_manifest(model_digest, welcome.manifest_bytes, unit_client, peers)
            store = await trio.to_thread.run_sync(PartialStore, directory, manifest)
        else:
            store = await trio.to_thread.run_sync(PartialStore.open, directory, model_digest)
        await _verify_trunk(store)
        for unit in store.missing():
            await unit_client.fetch(store, unit, peers)
    except PeerError as error:
        raise JoinError(f"cannot get the model of the mesh: {error}; start this node again to go on") from error
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise CheckpointError(
            f"cannot use {directory} for the model: {reason}: give another place with --state"
        ) from error
    return ModelSource(store, store.manifest, welcome.model_name, whole=False)


async def _fetch_manifest(
    model_digest: str, manifest_bytes: int, unit_client: UnitClient, peers: Callable[[], Sequence[NodeId]]
) -> Manifest:
    problem = "no peer is here"
    for peer in peers():
        try:
            size_bytes_max = min(manifest_bytes, MANIFEST_BYTES_MAX)
            data = await unit_client.fetch_bytes(peer, UnitName("manifest"), size_bytes_max)
            return decode_manifest(data, model_digest)
        except PeerError as error:
            problem = str(error)
    raise JoinError(f"the model's manifest could not be fetched: {problem}")


async def _verify_trunk(store: PartialStore) -> None:
    """A trunk from an earlier life is checked before it is used; a damaged one is deleted and fetched anew."""
    if store.has(UnitName("trunk")):
        try:
            await trio.to_thread.run_sync(store.verify_trunk)
        except CheckpointError as error:
            logger.warning("%s", error)


def model_name(directory: Path) -> str:
    """The name under which a checkpoint is listed: its directory's."""
    return directory.resolve().name
