"""A node's life: listen, join, get the model, serve, leave. This file wires the parts together and owns their tasks.

Order matters for people: what can fail fails early (ports, socket, peers, model files), before gigabytes are read. The
parts that answer peers are up before the model is, so that a joining node takes part in membership while it loads.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from random import Random
from typing import Any

import numpy as np
import torch
import trio
from numpy.typing import NDArray

from meshmoe import __version__
from meshmoe.core.errors import JoinError, MeshmoeError, RequestError
from meshmoe.core.ids import ExpertId, NodeId
from meshmoe.core.links import LinkShape
from meshmoe.custody import Life
from meshmoe.engine.compute import ComputeError
from meshmoe.engine.engine import Engine, EngineLimits, open_engine
from meshmoe.engine.model import MoeModel, load_moe_model
from meshmoe.engine.pool import ExpertPool
from meshmoe.engine.request import GenerationEvent, GenerationRequest
from meshmoe.membership import Learned, NameConflict
from meshmoe.model.bundled import bundled_model_dir
from meshmoe.node.announcing import State, node_info, node_load
from meshmoe.node.custody_file import CustodyFile
from meshmoe.node.expert_times import ExpertTimes, measurements
from meshmoe.node.handing_over import hand_over
from meshmoe.node.history import HistorySample
from meshmoe.node.joining import Doorkeeper, keep_greeting
from meshmoe.node.leave_progress import LeaveProgress
from meshmoe.node.link_news import LinkNews
from meshmoe.node.listening import open_listening
from meshmoe.node.mesh_keeper import MeshKeeper
from meshmoe.node.meters import Meters
from meshmoe.node.model_source import ModelSource, bundled_if, fetch_model, open_model
from meshmoe.node.outfit import begin_custody, begin_placement, connect_engine, make_pool, open_express
from meshmoe.node.parts import Parts, wire_parts
from meshmoe.node.reporting import (
    LackingKey,
    NotReadyError,
    join_command,
    node_status,
    own_addresses,
    readiness_problem,
)
from meshmoe.node.reporting_mesh import CoverageKey
from meshmoe.node.security import Security
from meshmoe.node.serving import Serving
from meshmoe.node.settings import NodeSettings
from meshmoe.node.status import CoverageStatus, NodeStatus
from meshmoe.transport.impaired import ImpairedTransport
from meshmoe.wire.messages import Hello, Welcome

logger = logging.getLogger(__name__)

PUBLISH_INTERVAL_S = 1.0
"""How often load and holdings are told at least; holdings are told at once when they change."""

DRAIN_TIMEOUT_S = 30.0
"""How long a leaving node's own requests may go on."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Node:
    """One node; `run` is its life. Implements `meshmoe.api.service.ModelService`."""

    def __init__(self, settings: NodeSettings) -> None:
        self.settings = settings
        self.custody_file = CustodyFile(settings.state_dir)
        # A box without a battery-backed clock may wake up in the past: never the same generation twice.
        self.generation = max(time.time_ns() // 1_000_000, self.custody_file.last_generation + 1)
        self.parts: Parts | None = None
        self.started_s = int(time.time())
        self.phase = "starting"
        self.progress: tuple[str, int, int] | None = None
        self.serving = Serving()
        self.ready = trio.Event()
        self.model_source: ModelSource | None = None
        self.model: MoeModel | None = None
        self.pool: ExpertPool | None = None
        self.before_stop: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint
        self._stop = trio.Event()
        self._failure: MeshmoeError | None = None
        self._nursery: trio.Nursery | None = None
        self.coverage: tuple[CoverageKey, CoverageStatus] | None = None
        """Kept for the next status: see `meshmoe.node.reporting_mesh.coverage_status`."""
        self.lacking: tuple[LackingKey, list[ExpertId]] | None = None
        """The same for the next request: see `meshmoe.node.reporting`."""
        self._link_news: LinkNews | None = None
        self.expert_times: ExpertTimes | None = None
        self._rng = Random(settings.seed)
        self.security: Security | None = None
        self._impaired: ImpairedTransport | None = None

    # -- the life ----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Live until `stop` or `leave`.

        Raises:
            MeshmoeError: The node cannot start, or cannot go on; one line for people.
        """
        own_model = await self._open_own_model()
        if self.settings.insecure:
            logger.warning("INSECURE: nothing is encrypted, and whoever reaches a port is believed (--insecure)")
        else:
            self.security = await trio.to_thread.run_sync(Security, self.settings.node, self.settings.state_dir)
            if not self.settings.peers:
                self.security.begin()
        keyring = self.security.keyring if self.security is not None else None
        listening = open_listening(self.settings, self.generation, keyring, self._rng.getrandbits(32))
        async with listening as (transport, self._impaired):
            parts = wire_parts(self.settings, self.generation, transport, self._rng, self.security)
            parts.membership.on_conflict = self._name_conflict
            Doorkeeper(parts.messenger, parts.membership, self._welcome, self.spawn, parts.admission)
            if parts.admission is not None:
                parts.admission.on_expelled = self._expelled
            if parts.expert_client.spot_checks is not None:
                parts.expert_client.spot_checks.spawn = self.spawn
            self.parts = parts
            self._link_news = LinkNews(parts.membership.machine, parts.mesh.rates)
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                nursery.start_soon(parts.run)
                nursery.start_soon(self._publish_regularly)
                await self._serve(parts, own_model)
                nursery.cancel_scope.cancel()
        if self._failure is not None:
            raise self._failure

    async def _serve(self, parts: Parts, own_model: ModelSource | None) -> None:
        welcome = await self._join(parts, own_model)
        self.model_source = await self._obtain_model(parts, own_model, welcome)
        parts.unit_server.source = self.model_source.source
        self.model = await self._load_trunk(self.model_source)
        self.pool = make_pool(self.settings, self.model_source, self.model, self._device)
        life = Life(self.settings.node, self.generation)
        begin_custody(self.settings.node, life, parts, self.custody_file, self.model_source, self.model, self.pool)
        begin_placement(self.settings, self.generation, self._rng, parts, self.model, self.pool)
        limits = EngineLimits(
            drafts=self.settings.drafts, threads=self.settings.threads, kv_cache_bytes=self.settings.kv_cache_bytes
        )
        async with open_engine(self.model, self.pool, parts.expert_client, limits) as engine:
            if self.settings.express:
                await open_express(parts, engine, self.settings.spin, self.spawn)
            self._connect_engine(parts, engine, self.pool)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(parts.custody.run)
                nursery.start_soon(self.serving.keep_history)
                nursery.start_soon(parts.placement.run)
                nursery.start_soon(self._measure_experts, parts, engine)
                nursery.start_soon(self._mind_compute, engine)
                hello = self._hello(parts, self.model_source.manifest.model_digest)
                nursery.start_soon(keep_greeting, parts.greeter, parts.membership, self.settings.peers, hello)
                await self._stop.wait()
                await self.before_stop()  # clients of open streams are told before the engine goes away under them
                nursery.cancel_scope.cancel()

    def stop(self, failure: MeshmoeError | None = None) -> None:
        """End the node's life at once, without handing anything over."""
        self._failure = self._failure or failure
        self._stop.set()

    async def _open_own_model(self) -> ModelSource | None:
        directory = self.settings.model
        if directory is None and not self.settings.peers:
            directory = bundled_model_dir()
        if directory is None:
            return None
        self.phase = "loading"
        return await open_model(directory, self.settings.cache_dir, self._report)

    def spawn(self, task: Callable[[], Awaitable[None]]) -> None:
        """Run an async function as a task of this node."""
        assert self._nursery is not None
        self._nursery.start_soon(task)

    async def _join(self, parts: Parts, own_model: ModelSource | None) -> Welcome | None:
        settings = self.settings
        if not settings.peers:
            return None
        self.phase = "joining"
        digest = own_model.manifest.model_digest if own_model is not None else None
        welcome = await parts.greeter.greet(settings.peers, self._hello(parts, digest))
        parts.membership.feed(Learned(NodeId(welcome.node), welcome.generation, welcome.endpoints))
        return welcome

    def _hello(self, parts: Parts, model_digest: str | None) -> Hello:
        return Hello(
            node=self.settings.node,
            generation=self.generation,
            endpoints=parts.endpoints,
            software=__version__,
            model_digest=model_digest,
        )

    async def _obtain_model(self, parts: Parts, own_model: ModelSource | None, welcome: Welcome | None) -> ModelSource:
        if welcome is None:
            assert own_model is not None
            return own_model
        own = own_model or await bundled_if(welcome.model_digest, self.settings.cache_dir)
        if own is not None:
            return dataclasses.replace(own, name=welcome.model_name)
        self.phase = "fetching"
        first = NodeId(welcome.node)

        def peers() -> list[NodeId]:
            others = parts.mesh.nearest_first(parts.mesh.serving())
            return [first, *(peer for peer in others if peer != first)]

        return await fetch_model(welcome, self.settings.state_dir / "models", parts.unit_client, peers)

    async def _load_trunk(self, model_source: ModelSource) -> MoeModel:
        self.phase = "loading"
        dtype = None if self.settings.dtype == "auto" else DTYPES[self.settings.dtype]
        arguments = (model_source.source, dtype, self.settings.decode, self._device)
        return await trio.to_thread.run_sync(load_moe_model, *arguments)

    @property
    def _device(self) -> torch.device | None:
        return torch.device("cuda") if self.settings.device == "cuda" else None

    def _connect_engine(self, parts: Parts, engine: Engine, pool: ExpertPool) -> None:
        connect_engine(parts, engine, pool)
        parts.placement.drafts_seen = self.serving.drafts_seen
        self.serving.engine = engine
        self.phase = "serving"
        self._publish(parts)
        self.ready.set()

    # -- news --------------------------------------------------------------------------------------------------------

    def _expelled(self, error: JoinError) -> None:
        if self.security is not None:
            self.security.forget_mesh()
        self.stop(error)

    def _name_conflict(self, conflict: NameConflict) -> None:
        if conflict.yields:
            address = conflict.other.endpoints.address()
            self.stop(JoinError(f"another node named {conflict.node} lives at {address}: this one stops"))
        else:
            logger.warning("two nodes are named %s: give one another name", conflict.node)

    def _publish(self, parts: Parts) -> None:
        state: State = "leaving" if self.phase == "leaving" else "serving" if self.serving.engine else "starting"
        parts.gossip.publish(node_info(state, parts.endpoints, self.model_source, self.pool, self.expert_times))
        pool, engine = self.pool, self.serving.engine
        if pool is None or engine is None:
            return
        links = self._link_news.of(parts.membership.present()) if self._link_news is not None else None
        load = node_load(pool, engine.stats().peer_calls, self.expert_times)
        parts.gossip.publish(load, *([links] if links is not None else []))
        parts.gossip.publish_holdings(pool.experts())

    async def _mind_compute(self, engine: Engine) -> None:
        """A node that cannot compute must not go on promising experts: it ends, and the others take over."""
        error = await engine.compute.wait_failed()
        what = f"{type(error).__name__}: {error}".rstrip(": ")
        self.stop(ComputeError(f"this node cannot compute any more ({what}): start it again"))

    async def _measure_experts(self, parts: Parts, engine: Engine) -> None:
        while not engine.pool.experts():
            await parts.mesh.wait_changed()
        async for self.expert_times in measurements(engine):
            parts.placement.measured(self.expert_times)

    async def _publish_regularly(self) -> None:
        while True:
            assert self.parts is not None
            self._publish(self.parts)
            await trio.sleep(PUBLISH_INTERVAL_S)

    def _report(self, what: str, done: int, total: int) -> None:
        self.progress = (what, done, total)

    def _welcome(self) -> Welcome | None:
        if self.model_source is None or self.parts is None or self.phase == "leaving":
            return None
        manifest = self.model_source.manifest
        return Welcome(
            node=self.settings.node,
            generation=self.generation,
            endpoints=self.parts.endpoints,
            software=__version__,
            model_digest=manifest.model_digest,
            model_name=self.model_source.name,
            manifest_bytes=len(manifest.encode()),
        )

    def reshape_links(self, links: Mapping[NodeId, LinkShape]) -> None:
        """Give emulated links other values; those that are missing are blocked until they are there again."""
        if self._impaired is None:
            return
        for peer in self.settings.links:
            shape = links.get(peer)
            if shape is None:
                self._impaired.block(peer)
            else:
                self._impaired.reshape(peer, shape)
                self._impaired.unblock(peer)

    def join_word(self) -> str:
        """What ``--peer`` on another box takes: a token, or the address in an insecure mesh."""
        return join_command(self, self.parts).rpartition(" ")[2] if self.parts is not None else ""

    # -- for the API -------------------------------------------------------------------------------------------------

    @property
    def model_name(self) -> str:
        """The name under which the model is listed."""
        return self.model_source.name if self.model_source is not None else ""

    @property
    def tokenizer(self) -> Any:
        """The transformers tokenizer; raises while the model is not loaded."""
        return self._model().tokenizer

    @property
    def context_tokens(self) -> int:
        """Longest sequence of the model; raises while the model is not loaded."""
        return self._model().context_length

    def require_ready(self) -> None:
        """Return if a request would be served now.

        Raises:
            CapacityError: The mesh cannot hold the model; the message says how many bytes are missing.
            MeshmoeError: The node is starting or leaving.
        """
        problem = readiness_problem(self)
        if problem is not None:
            raise problem

    def generate(self, request: GenerationRequest) -> AbstractAsyncContextManager[AsyncIterator[GenerationEvent]]:
        """Run a generation; leaving the context early cancels it everywhere."""
        return self.serving.generate(request, self.require_ready)

    def status(self) -> NodeStatus:
        """A snapshot."""
        return node_status(self)

    def keeper(self) -> MeshKeeper:
        """Decides who belongs to the mesh.

        Raises:
            RequestError: The mesh is insecure, or this node belongs to none yet.
        """
        if self.settings.insecure:
            raise RequestError("this mesh is insecure: it has no tokens and no members to expel", http_status=409)
        if self.parts is None or self.parts.admission is None or self.parts.admission.security.roll is None:
            raise NotReadyError(f"node {self.settings.node} is {self.phase}: try again in a moment")
        return MeshKeeper(self.parts.admission, own_addresses(self, self.parts))

    def meters(self) -> Meters:
        """What this node's requests took since its start; grows."""
        return self.serving.meters

    def history(self) -> Sequence[HistorySample]:
        """How it went lately, oldest first."""
        return self.serving.history.samples

    def routing(self, tokens: int) -> NDArray[np.int16]:
        """Routing sets of tokens written lately: ``[windows, tokens, MoE layers, top_k]``."""
        if self.parts is None or self.model is None:
            return np.zeros((0, tokens, 1, 1), np.int16)
        return self.parts.placement.keeper.windows(tokens)

    @asynccontextmanager
    async def leave(self) -> AsyncIterator[AsyncIterator[LeaveProgress]]:
        """Hand over everything in this node's custody, say farewell, and stop; yields progress."""
        yield self._leave()

    async def _leave(self) -> AsyncIterator[LeaveProgress]:
        self.phase = "leaving"
        parts = self.parts
        if parts is not None and parts.custody.machine is not None and parts.membership.present():
            self._publish(parts)
            async for step in hand_over(parts.custody, parts.mesh):
                yield step
        await self.serving.drain(timeout_s=DRAIN_TIMEOUT_S)
        if parts is not None:
            await parts.membership.leave()
        yield LeaveProgress(0, 0, "left")
        self.stop()

    def _model(self) -> MoeModel:
        if self.model is None:
            raise MeshmoeError(f"this node is {self.phase}: try again in a moment")
        return self.model
