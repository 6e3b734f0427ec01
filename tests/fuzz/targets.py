"""What is fuzzed: each target takes bytes from anybody and may raise only what it is said to raise.

An input is a crash when anything else comes out: another exception, or (under atheris) a hang or a fatal signal.
"""

from __future__ import annotations

import contextlib
import random
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from zipfile import ZipFile

import msgspec
from hypothesis import HealthCheck, Phase, given, settings

from meshmoe.admission import Roll, RollNews, RollState, SecretStaleError, new_secret
from meshmoe.api.decoding import decode_body
from meshmoe.api.request_types import ChatBody, CompletionBody
from meshmoe.api.sampling import sampling_params
from meshmoe.core.config import parse_profile, parse_topology
from meshmoe.core.endpoints import Endpoints
from meshmoe.core.errors import CheckpointError, ConfigError, PeerError, RequestError, WireError
from meshmoe.core.ids import ExpertId, NodeId
from meshmoe.core.messages import Message
from meshmoe.core.token import decode_token
from meshmoe.custody import CUSTODY_MESSAGES, CustodyMachine, Life, decode_state
from meshmoe.custody import DEFAULT as CUSTODY
from meshmoe.gossip import DEFAULT as GOSSIP
from meshmoe.gossip import GOSSIP_MESSAGES, Gossip
from meshmoe.gossip import values as gossip_values
from meshmoe.membership import MEMBERSHIP_MESSAGES, PRESETS, Membership, Received
from meshmoe.model.manifest import decode_manifest
from meshmoe.model.tensor_files import INDEX_FILE, SINGLE_FILE, TensorFiles
from meshmoe.placement.exchange import (
    EXCHANGE_MESSAGES,
    ExchangeAnswer,
    ExchangeMachine,
    ExchangeProposal,
    Heard,
    SendTo,
    Wake,
)
from meshmoe.placement.exchange.settlement import agree, digest
from meshmoe.placement.world import ModelShape, World
from meshmoe.transport.envelope import seal, unseal
from meshmoe.transport.identity import parse_identity
from meshmoe.wire.codec import CODEC
from tests.model.test_manifest import small_manifest
from tests.placement.exchange.mesh import Mesh
from tests.placement.worlds import small_world
from tests.wire.strategies import messages

ME, PEER = NodeId("me"), NodeId("peer")
KEPT = Path(__file__).parent / "corpus"


def wire(data: bytes) -> None:
    """A parcel as it comes from a socket."""
    parse_identity(data[:255])
    frames = unseal(memoryview(data))
    if frames is not None:
        with contextlib.suppress(WireError):
            CODEC.decode(frames)


def machines(data: bytes) -> None:
    """A message that is valid in form, to the machine that it is for."""
    try:
        message = CODEC.decode([data]).message
    except WireError:
        return
    received = Received(PEER, 7, message)
    try:
        if isinstance(message, MEMBERSHIP_MESSAGES):
            machine = Membership(PRESETS["lan"], ME, 1, Endpoints("127.0.0.1", 1, 2, 3), random.Random(0), 0.0)
            machine.handle(received, 1.0)
            machine.handle(received, 2.0)
        elif isinstance(message, GOSSIP_MESSAGES):
            gossip = Gossip(GOSSIP, ME, 1, random.Random(0), 0.0)
            gossip.handle(received, 1.0)
            gossip.view.holder_digest()
        elif isinstance(message, CUSTODY_MESSAGES):
            custody().handle(received, 1.0)
        elif isinstance(message, RollNews):
            with contextlib.suppress(SecretStaleError):
                Roll(RollState(new_secret())).merge(message)
    except PeerError:
        pass


def exchange(data: bytes) -> None:
    """A message about placement, to a machine that is idle, has proposed, or is bound: the first byte says which.

    Ids and versions that a peer knows are put in, or else nothing would come far.
    """
    if not data:
        return
    try:
        message = CODEC.decode([data[1:]]).message
    except WireError:
        return
    if not isinstance(message, EXCHANGE_MESSAGES):
        return
    mesh = Mesh(_two_nodes(), loss=1.0)
    me, peer = sorted(mesh.machines)
    machine = mesh.machines[me]
    known: dict[str, int] = {}
    proposal = None
    if data[0] % 3:
        proposer = machine if data[0] % 3 == 1 else mesh.machines[peer]
        proposal = _proposal_of(proposer)
        if proposer is not machine:
            machine.handle(Heard(peer, proposal), 40.0)
        known = {"id": proposal.id}
    if isinstance(message, ExchangeProposal):
        known = {"one_version": mesh.machines[peer].plan.version, "two_version": machine.plan.version}
    message = msgspec.structs.replace(message, **known)
    if isinstance(message, ExchangeAnswer) and proposal is not None:
        message = _fitting(message, proposal, mesh.world.shape)
    effects = machine.handle(Heard(peer, message), 41.0)
    for effect in effects:
        if isinstance(effect, SendTo):
            CODEC.encode(effect.message)  # what it says to anything can be said
    machine.handle(Wake(), 100.0)


def _fitting(answer: ExchangeAnswer, proposal: ExchangeProposal, shape: ModelShape) -> ExchangeAnswer:
    """With as many prices as there are lots, and the digest that the other end will compute."""
    count = len(proposal.lots) + len(answer.lots)
    answer = msgspec.structs.replace(answer, prices=(answer.prices or [10**9] * count)[:count])
    agreed = agree(proposal, answer, shape)
    return answer if agreed is None else msgspec.structs.replace(answer, digest=digest(agreed[0]))


@cache
def _two_nodes() -> World:
    return small_world(nodes=2, layers=3, experts=4, tokens=40)


def _proposal_of(machine: ExchangeMachine) -> ExchangeProposal:
    """The first one; before it, a machine may change its own copies."""
    for now in (10.0, 20.0, 30.0):
        for effect in machine.handle(Wake(), now):
            if isinstance(effect, SendTo) and isinstance(effect.message, ExchangeProposal):
                return effect.message
    raise AssertionError("it proposes nothing")


def custody() -> CustodyMachine:
    sizes = {ExpertId(layer, index): 1000 for layer in range(2) for index in range(4)}
    return CustodyMachine(CUSTODY, Life(ME, 9), "a" * 40, sizes, 8000, None, 0.0)


def gossip(data: bytes) -> None:
    """A gossiped value: the first byte chooses its key."""
    if not data:
        return
    keys = ("node", "load", "links", "agreement", "holdings/3", "claims/3", "demand/3", "later/1", "")
    value = gossip_values.unpack(keys[data[0] % len(keys)], data[1:])
    for name in ("indices", "epoch_of", "rates_per_s"):
        if hasattr(value, name):
            getattr(value, name)()


@cache
def _scratch() -> Path:
    base = "/dev/shm" if Path("/dev/shm").is_dir() else None
    return Path(tempfile.mkdtemp(prefix="mm-fuzz-", dir=base))


def safetensors(data: bytes) -> None:
    """The header of a weights file."""
    (_scratch() / INDEX_FILE).unlink(missing_ok=True)
    (_scratch() / SINGLE_FILE).write_bytes(data)
    with contextlib.suppress(CheckpointError):
        TensorFiles(_scratch())


def index(data: bytes) -> None:
    """The index of a checkpoint in several files."""
    (_scratch() / SINGLE_FILE).unlink(missing_ok=True)
    (_scratch() / INDEX_FILE).write_bytes(data)
    with contextlib.suppress(CheckpointError):
        TensorFiles(_scratch())


def manifest(data: bytes) -> None:
    """What a peer sends as the list of a model's parts."""
    with contextlib.suppress(WireError, CheckpointError):
        decode_manifest(data)


def files(data: bytes) -> None:
    """Profiles, topologies and tokens as people write them, and custody's file."""
    text = data.decode("utf-8", "replace")
    for read in (lambda: parse_topology(text, "f"), lambda: parse_profile(text, "f"), lambda: decode_token(text)):
        try:
            read()
        except ConfigError as error:
            assert "\n" not in str(error)
    with contextlib.suppress(CheckpointError):
        decode_state(data)


def http(data: bytes) -> None:
    """Bodies of requests."""
    for kind in (CompletionBody, ChatBody):
        try:
            body = decode_body(data, kind)
            sampling_params(body, copy=0, max_tokens=body.max_tokens, room_tokens=100, logprobs=None)
        except RequestError as error:
            assert error.http_status in (400, 422)


TARGETS: dict[str, Callable[[bytes], None]] = {
    "wire": wire,
    "machines": machines,
    "exchange": exchange,
    "gossip": gossip,
    "safetensors": safetensors,
    "index": index,
    "manifest": manifest,
    "files": files,
    "http": http,
}


def kept(target: str) -> list[bytes]:
    """What fuzzing has found worth keeping: a corpus of atheris in one file, and inputs that once crashed beside it."""
    found = [path.read_bytes() for path in sorted(KEPT.glob(f"{target}/*"))]
    packed = KEPT / f"{target}.zip"
    if packed.exists():
        with ZipFile(packed) as archive:
            found += [archive.read(name) for name in archive.namelist()]
    return found


def seeds() -> dict[str, list[bytes]]:
    """Valid inputs for every target, to begin with."""
    headers = [header for message_type in CODEC.message_types for header in _valid(message_type)]
    small = b'{"w":{"dtype":"BF16","shape":[2,2],"data_offsets":[0,8]}}'
    packed = [gossip_values.pack(gossip_values.Holdings.of(3, [1, 9])), gossip_values.pack(gossip_values.Load(1, 2))]
    return {
        "wire": [seal([header]) for header in headers],
        "machines": headers,
        "exchange": [bytes([state]) + header for state in range(3) for header in _bargaining()],
        "gossip": [bytes([number]) + value for number in range(9) for value in packed],
        "safetensors": [len(small).to_bytes(8, "little") + small + bytes(8)],
        "index": [b'{"metadata":{"total_size":8},"weight_map":{"w":"model-00001-of-00002.safetensors"}}'],
        "manifest": [small_manifest().encode(), small_manifest().encode()[:-40]],
        "files": [path.read_bytes() for kind in ("nodes", "topology") for path in Path(kind).glob("*.toml")],
        "http": [
            b'{"prompt":"a","max_tokens":3,"temperature":0.5,"stop":["x"],"n":2,"logprobs":1}',
            b'{"messages":[{"role":"user","content":[{"type":"text","text":"a"}]}],"stream":true,"seed":1,"top_p":0.1}',
        ],
    }


def _bargaining() -> list[bytes]:
    """What two machines say to each other, and what fits the types but no mesh."""
    mesh = Mesh(_two_nodes())
    mesh.run(20.0)
    said = [bytes(CODEC.encode(message)[0]) for _, _, message in mesh.sent]
    return said[:12] + [header for message_type in EXCHANGE_MESSAGES for header in _valid(message_type)]


def _valid(message_type: type[Message]) -> list[bytes]:
    """Some valid messages of a type, the same every time."""
    found: list[bytes] = []

    @settings(
        max_examples=6,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=[*HealthCheck],
    )
    @given(messages(message_type))
    def collect(message: Message) -> None:
        found.append(bytes(CODEC.encode(message)[0]))

    collect()
    return found
