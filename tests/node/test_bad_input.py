"""`meshmoe join` with everything that can be wrong: one clear line, the right exit code, no traceback, and soon.

Most of it runs in this process, since importing torch anew takes seconds. The mesh to join is two real nodes in a
thread. What is wrong with a request to the API is in tests/api/test_errors.py.
"""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numba
import pytest
import torch
import trio
from click.testing import CliRunner
from rich.console import Console
from transformers import LlamaConfig, LlamaForCausalLM

from meshmoe.api.server import serve_api
from meshmoe.cli.main import cli
from meshmoe.core.errors import PeerError
from meshmoe.core.ids import NodeId
from meshmoe.core.token import JoinToken, Ticket, parse_peer
from meshmoe.model.tiny import byte_tokenizer, make_tiny_checkpoint
from meshmoe.node import joining
from meshmoe.node.node import Node
from meshmoe.node.settings import NodeSettings
from meshmoe.node.unit_client import UnitClient

BOUND_S = 90.0
"""For any of these commands to end; on an idle machine each takes less than a second."""

Fails = Callable[..., str]


@dataclass
class Models:
    """Checkpoint directories."""

    good: Path
    other: Path
    dense: Path


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    base = tmp_path_factory.mktemp("models")
    config = LlamaConfig(
        vocab_size=288,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    LlamaForCausalLM(config).save_pretrained(base / "dense")
    byte_tokenizer().save_pretrained(base / "dense")
    return Models(
        good=make_tiny_checkpoint("qwen3_moe", base / "good", seed=0),
        other=make_tiny_checkpoint("qwen3_moe", base / "other", seed=1),
        dense=base / "dense",
    )


@pytest.fixture
def damaged(models: Models, tmp_path: Path) -> Path:
    """A copy to do harm to."""
    return Path(shutil.copytree(models.good, tmp_path / "damaged"))


@dataclass
class Mesh:
    """Two nodes, ``first`` and ``second``, in a thread of their own."""

    directory: Path
    model: Path
    address: str = ""
    word: str = ""
    socket_path: Path = Path()
    nodes: list[Node] = field(default_factory=list)
    problem: BaseException | None = None
    ready: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        try:
            trio.run(self._live)
        except BaseException as error:
            self.problem = error
        finally:
            self.ready.set()

    async def _live(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        async with trio.open_nursery() as nursery:
            self._scope = nursery.cancel_scope
            first = await self._start(nursery, "first")
            assert first.parts is not None
            endpoints = first.parts.endpoints
            self.address = endpoints.address()
            self.word = first.join_word()
            await self._start(nursery, "second", (parse_peer(self.word),))
            self.socket_path = self.directory / "first.sock"
            await nursery.start(serve_api, first, self.socket_path)
            self.ready.set()

    async def _start(self, nursery: trio.Nursery, name: str, peers: Any = ()) -> Node:
        settings = NodeSettings(
            node=NodeId(name),
            peers=peers,
            listen=("127.0.0.1", 0),
            model=self.model,
            socket_path=self.directory / f"{name}.sock",
            state_dir=self.directory / f"{name}-state",
            cache_dir=self.directory / "cache",
            seed=1,
        )
        node = Node(settings)
        self.nodes.append(node)
        nursery.start_soon(node.run)
        with trio.fail_after(BOUND_S):
            await node.ready.wait()
        return node

    def others_of_first(self) -> dict[str, str]:
        """What ``first`` thinks of the other nodes."""
        status = trio.from_thread.run_sync(self.nodes[0].status, trio_token=self._token)
        return {peer.node: peer.state for peer in status.peers if not peer.is_self}

    def stop(self) -> None:
        with contextlib.suppress(trio.RunFinishedError):
            self._token.run_sync_soon(self._scope.cancel)


@pytest.fixture(scope="module")
def mesh(models: Models) -> Iterator[Mesh]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        running = Mesh(Path(directory), models.good)
        thread = threading.Thread(target=running.run)
        thread.start()
        assert running.ready.wait(2 * BOUND_S)
        if running.problem is not None:
            raise running.problem
        yield running
        running.stop()
        thread.join(BOUND_S)
        assert not thread.is_alive()
        assert running.problem is None
    torch.set_num_threads(threads)


@pytest.fixture
def surroundings(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Everything that a node leaves on a disk goes to a directory of this test (of a short name, for its socket)."""
    monkeypatch.delenv("MESHMOE_DEBUG", raising=False)
    monkeypatch.setenv("NUMBA_CACHE_DIR", numba.config.CACHE_DIR)  # what is compiled already need not be again
    logger = logging.getLogger("meshmoe")
    level, root_handlers = logger.level, list(logging.getLogger().handlers)
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        monkeypatch.setenv("MESHMOE_SOCKET", f"{directory}/node.sock")
        for variable in ("XDG_STATE_HOME", "XDG_CACHE_HOME", "XDG_RUNTIME_DIR"):
            path = Path(directory) / variable.lower()
            path.mkdir()
            monkeypatch.setenv(variable, str(path))
        yield Path(directory)
        assert not (Path(directory) / "node.sock").exists()
    logger.setLevel(level)
    logging.getLogger().handlers[:] = root_handlers


@pytest.fixture
def fails(surroundings: Path) -> Fails:
    """Run ``meshmoe join`` in this process and give the line that it fails with."""

    def run(*flags: str | Path, code: int) -> str:
        defaults = ("--threads", "1", "--listen", "127.0.0.1:0", "--name", "newcomer")
        with ends_within(BOUND_S):
            result = CliRunner().invoke(cli, ["join", *defaults, *map(str, flags)])
        assert result.stdout == ""
        return the_line(result.stderr, result.exit_code, code)

    return run


@contextlib.contextmanager
def ends_within(seconds: float) -> Iterator[None]:
    """Interrupt the command, as a user would, when it takes too long; it then fails with another exit code."""
    before = signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGINT))
    signal.setitimer(signal.ITIMER_REAL, seconds, 2.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def word_for(port: int) -> str:
    """A token that is right in form, for whatever listens there."""
    return JoinToken([("127.0.0.1", port)], bytes(range(32)), Ticket(bytes(8), 0, bytes(16))).encode()


def the_line(stderr: str, exit_code: int | None, expected_code: int) -> str:
    """The one line that says what went wrong; log lines and steps may stand before it."""
    assert exit_code == expected_code, stderr
    assert "Traceback" not in stderr
    *before, line = stderr.splitlines()
    assert not [text for text in before if text.startswith("meshmoe: ")], stderr
    assert line.startswith("meshmoe: ")
    assert "internal error" not in line
    return line.removeprefix("meshmoe: ")


# -- flags -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--peer", "192.168.1.20"], "--peer: '192.168.1.20' is not an address: write it like 192.168.1.20:9700"),
        (["--peer", "box:99999"], "--peer: port 99999 is out of range: use 1 to 65535"),
        (["--peer", "fd00::1:7337"], "--peer: 'fd00::1:7337' is not an address"),
        (["--peer", "mm1-AAAA"], "--peer: 'mm1-AAAA'... is not a join token: copy the whole word"),
        (["--capacity", "much"], "capacity 'much': write a size like 400MiB or a share of the experts like 40%"),
        (["--capacity", "lots%"], "'lots%' is not"),
        (["--name", "Kitchen PC"], "node name 'Kitchen PC' is not usable: start with a-z or 0-9"),
        (["--name", "@box:1"], "node name '@box:1' is not usable"),
        (["--listen", "7337"], "--listen: '7337' is not an address: write it like"),
        (
            ["--advertise", "box:7337"],
            "--advertise: 'box:7337' is not a host: write a name or an address without a port",
        ),
        (["--advertise", ""], "--advertise: '' is not a host"),
        (["--http", "0.0.0.0:8080"], "HTTP is served on this machine only, not on '0.0.0.0': use 127.0.0.1:8080"),
        (["--http", "example.org:80"], "HTTP is served on this machine only, not on 'example.org'"),
        (["--http", "localhost"], "'localhost' is not an address for HTTP: write it like 127.0.0.1:8080"),
        (["--profile", "pi6"], "--profile: there is no file pi6: give a path, or one of desktop-24gb-gpu, jetson-"),
        (
            ["--links", "four-rooms"],
            "--links: there is no file four-rooms: give a path, or one of home-lan, lossy-wifi",
        ),
        (["--links", "three-rooms"], "--links: three-rooms has no node newcomer: it has "),
        (
            ["--dtype", "int8"],
            "'int8' is not one of 'auto', 'float32', 'bfloat16', 'float16': see `meshmoe join --help`",
        ),
        (["--threads", "0"], "0 is not in the range"),
        (["--frobnicate"], "--frobnicate"),
        (["node-2"], "unexpected extra argument"),
    ],
)
def test_flags(fails: Fails, flags: list[str], words: str) -> None:
    assert words in fails(*flags, code=2)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('capasity = "5GB"', "box.toml: unknown key 'capasity': did you mean 'capacity'?"),
        ('capacity = "5 parsecs"', "box.toml: capacity '5 parsecs': write a size like 400MiB"),
        ("threads = ", "box.toml: not valid TOML"),
    ],
)
def test_profile(fails: Fails, surroundings: Path, text: str, words: str) -> None:
    (surroundings / "box.toml").write_text(text)
    assert fails("--profile", surroundings / "box.toml", code=2).startswith(words)


def test_unknown_key_in_a_topology(fails: Fails, surroundings: Path) -> None:
    (surroundings / "home.toml").write_text("[nodes.newcomer]\nprofil = 'pi5-8gb'\n")
    line = fails("--links", surroundings / "home.toml", code=2)
    assert line.startswith("home.toml: unknown key 'profil'")
    assert "did you mean 'profile'?" in line


# -- checkpoints -----------------------------------------------------------------------------------------------------


def test_no_such_checkpoint(fails: Fails, tmp_path: Path) -> None:
    line = fails("--model", tmp_path / "nowhere", code=3)
    assert line == f"{tmp_path}/nowhere is not a directory: give the directory of a Hugging Face checkpoint"


def test_no_config(fails: Fails, damaged: Path) -> None:
    (damaged / "config.json").unlink()
    assert fails("--model", damaged, code=3).startswith(f"{damaged} has no config.json: ")


def test_truncated_weights(fails: Fails, damaged: Path) -> None:
    path = damaged / "model.safetensors"
    whole_bytes = path.stat().st_size
    os.truncate(path, whole_bytes // 2)
    line = fails("--model", damaged, code=3)
    assert f"model.safetensors is truncated: {whole_bytes // 2} of {whole_bytes} bytes" in line


def test_not_a_mixture_of_experts(fails: Fails, models: Models) -> None:
    line = fails("--model", models.dense, code=3)
    assert str(models.dense) in line
    assert "Mixture" in line or "MoE" in line


def test_capacity_too_small_for_one_expert(fails: Fails, models: Models) -> None:
    line = fails("--model", models.good, "--capacity", "1KiB", code=4)
    assert re.fullmatch(
        r"capacity 1\S* KiB is too small for one expert of this model \(\S+ KiB\): give more with --capacity", line
    )


def test_no_capacity_at_all(fails: Fails, models: Models) -> None:
    assert "is too small for one expert" in fails("--model", models.good, "--capacity", "0%", code=4)


# -- ports and sockets -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lane", [0, 1, 2])
def test_busy_port(fails: Fails, models: Models, lane: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        listen = f"127.0.0.1:{taken - lane}"
        line = fails("--model", models.good, "--listen", listen, code=2)
    assert line.startswith("cannot listen on port ")
    assert "another program has it; stop that one, or listen on another port" in line


def test_an_address_of_another_machine(fails: Fails, models: Models) -> None:
    line = fails("--model", models.good, "--listen", "192.0.2.1:0", code=2)
    assert line.startswith("cannot listen on 192.0.2.1: this machine has no such address")


def test_busy_http_port(fails: Fails, models: Models) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        line = fails("--model", models.good, "--http", f"127.0.0.1:{taken}", code=2)
    assert line == f"port {taken} of 127.0.0.1 is in use: give another with --http"


def test_socket_in_use(fails: Fails, models: Models, mesh: Mesh) -> None:
    line = fails("--model", models.good, "--socket", mesh.socket_path, code=2)
    expected = f"socket {mesh.socket_path} is in use by a running node (pid {os.getpid()}): give another with --socket"
    assert line == expected
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(mesh.socket_path)), base_url="http://node") as client:
        assert client.get("/health").status_code == 200


def test_socket_path_of_something_else(fails: Fails, models: Models, tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("precious")
    assert "is not a socket" in fails("--model", models.good, "--socket", tmp_path / "notes", code=2)
    assert (tmp_path / "notes").read_text() == "precious"


# -- joining ---------------------------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port: int = closed.getsockname()[1]
        return port


def three_free_ports() -> int:
    """The first of three in a row, below those that the kernel gives to others meanwhile."""
    for first in random.sample(range(20_000, 32_000), 100):
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            for port in range(first, first + 3):
                stack.enter_context(socket.create_server(("127.0.0.1", port)))
            return first
    raise AssertionError("no three ports in a row are free")


def test_nothing_listens_there(fails: Fails) -> None:
    port = free_port()
    line = fails("--peer", f"127.0.0.1:{port}", code=5)
    assert line == f"cannot join: nothing listens on 127.0.0.1:{port}: is `meshmoe join` running there?"


def test_every_address_is_told(fails: Fails) -> None:
    ports = free_port(), free_port()
    line = fails("--peer", f"127.0.0.1:{ports[0]}", "--peer", f"127.0.0.1:{ports[1]}", code=5)
    assert all(f"127.0.0.1:{port}: " in line for port in ports)


@pytest.mark.parametrize(
    ("number", "words"),
    [(socket.EAI_NONAME, "there is no host named nobody.example"), (socket.EAI_AGAIN, "cannot be looked up now")],
)
def test_a_name_that_does_not_resolve(fails: Fails, monkeypatch: pytest.MonkeyPatch, number: int, words: str) -> None:
    real = socket.getaddrinfo

    def lookup(host: Any, *arguments: Any, **options: Any) -> Any:
        if host in ("nobody.example", b"nobody.example"):
            raise socket.gaierror(number, "told by the test")
        return real(host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    line = fails("--peer", "nobody.example:7337", code=5)
    assert line.startswith("cannot join: nobody.example:7337: ")
    assert words in line


def test_a_name_that_cannot_be_one(fails: Fails) -> None:
    assert "'two..dots' cannot be a host name" in fails("--peer", "two..dots:7337", code=5)


def test_something_else_listens_there(fails: Fails, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joining, "ANSWER_TIMEOUT_S", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        line = fails("--peer", word_for(port), code=5)
    assert line.startswith(f"cannot join: 127.0.0.1:{port} takes connections, but no node answered within 1 s: is it")


def test_an_address_without_a_token(fails: Fails, mesh: Mesh) -> None:
    line = fails("--peer", mesh.address, code=5)
    assert line == (
        f"cannot join: {mesh.address}: an address alone does not let this node in: run `meshmoe token new` on a member "
        "and give the word that it prints with --peer"
    )


def test_the_port_of_another_lane(fails: Fails, mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joining, "ANSWER_TIMEOUT_S", 1.0)
    parts = mesh.nodes[0].parts
    assert parts is not None
    line = fails("--peer", word_for(parts.endpoints.data_port), code=5)
    assert "is it the control port of a node" in line


def test_joining_itself(fails: Fails) -> None:
    port = three_free_ports()
    line = fails("--listen", f"127.0.0.1:{port}", "--peer", f"127.0.0.1:{port}", code=5)
    assert line == f"cannot join: 127.0.0.1:{port} is this node itself: give the address of another one"


def test_no_way_there(fails: Fails, monkeypatch: pytest.MonkeyPatch) -> None:
    async def unreachable(*_: Any) -> None:
        raise OSError(errno.EHOSTUNREACH, os.strerror(errno.EHOSTUNREACH))

    monkeypatch.setattr(trio, "open_tcp_stream", unreachable)
    line = fails("--peer", "192.0.2.1:7337", code=5)
    assert line.startswith("cannot join: no way to 192.0.2.1:7337 (No route to host): check the address")


def test_silence(fails: Fails, monkeypatch: pytest.MonkeyPatch) -> None:
    async def silent(*_: Any) -> None:
        await trio.sleep_forever()

    monkeypatch.setattr(joining, "CONNECT_TIMEOUT_S", 0.2)
    monkeypatch.setattr(trio, "open_tcp_stream", silent)
    line = fails("--peer", "192.0.2.1:7337", code=5)
    assert line.startswith("cannot join: no answer from 192.0.2.1:7337 within 0 s: check the address and the firewall")


def test_a_model_that_cannot_be_fetched(fails: Fails, mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    async def lacks(*_: Any) -> None:
        raise PeerError("trunk could not be fetched from any peer: first does not have trunk")

    monkeypatch.setattr(UnitClient, "fetch", lacks)
    line = fails("--peer", mesh.word, code=5)
    assert line == (
        "cannot get the model of the mesh: trunk could not be fetched from any peer: first does not have trunk; "
        "start this node again to go on"
    )


def test_another_model(fails: Fails, models: Models, mesh: Mesh) -> None:
    line = fails("--model", models.other, "--peer", mesh.word, code=5)
    assert re.fullmatch(
        rf"{mesh.address} refused: this mesh serves model [0-9a-f]{{12}}, you brought [0-9a-f]{{12}}: "
        r"join without --model to take the mesh's, or start a mesh of your own",
        line,
    )


@pytest.mark.parametrize("name", ["first", "second"])
def test_a_name_that_is_taken(fails: Fails, models: Models, mesh: Mesh, name: str) -> None:
    line = fails("--model", models.good, "--peer", mesh.word, "--name", name, code=5)
    assert line == f"{mesh.address} refused: a node named {name} is in the mesh already: choose another with --name"
    assert mesh.others_of_first()["second"] == "alive"


def test_capacity_too_small_in_a_mesh(fails: Fails, models: Models, mesh: Mesh) -> None:
    line = fails("--peer", mesh.word, "--model", models.good, "--capacity", "1KiB", code=4)
    assert "is too small for one expert" in line


def test_a_state_directory_that_is_a_file(fails: Fails, mesh: Mesh, tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("precious")
    line = fails("--peer", mesh.word, "--state", tmp_path / "notes", code=2)
    assert str(tmp_path / "notes") in line
    assert (tmp_path / "notes").read_text() == "precious"


# -- and with nothing wrong ------------------------------------------------------------------------------------------


def test_the_http_port_is_told(surroundings: Path, models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    said = io.StringIO()
    monkeypatch.setattr("meshmoe.cli.logs.Console", lambda **_: Console(file=said, width=200))
    answers: list[httpx.Response] = []

    def use_and_stop() -> None:
        deadline_s = time.monotonic() + BOUND_S
        while "look: meshmoe status" not in said.getvalue() and time.monotonic() < deadline_s:
            time.sleep(0.02)
        try:
            (address,) = re.findall(r"API: (http://127\.0\.0\.1:[1-9]\d*/v1)\n", said.getvalue())
            answers.append(httpx.get(f"{address}/models"))
        finally:
            os.kill(os.getpid(), signal.SIGINT)

    user = threading.Thread(target=use_and_stop)
    flags = (
        "--name",
        "alone",
        "--listen",
        "127.0.0.1:0",
        "--threads",
        "1",
        "--http",
        "127.0.0.1:0",
        "--log-format",
        "human",
    )
    user.start()
    with ends_within(2 * BOUND_S):
        result = CliRunner().invoke(cli, ["join", *flags, "--model", str(models.good)])
    user.join()
    assert (result.exit_code, result.stderr, result.stdout) == (0, "", "")
    (answer,) = answers
    assert answer.json()["data"][0]["id"] == "good"


# -- in processes of their own ---------------------------------------------------------------------------------------


@pytest.mark.mesh
def test_a_whole_process(surroundings: Path, models: Models) -> None:
    flags = ("--name", "newcomer", "--listen", "127.0.0.1:0", "--threads", "1", "--capacity", "1KiB")
    command = [sys.executable, "-m", "meshmoe.cli.main", "join", *flags, "--model", str(models.good)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=3 * BOUND_S, check=False)
    assert done.stdout == ""
    assert "is too small for one expert" in the_line(done.stderr, done.returncode, 4)


def test_help_and_wrong_flags_need_no_torch(surroundings: Path) -> None:
    script = (
        "import sys\nfrom meshmoe.cli.main import cli\n"
        "for flags in ['--help'], ['--http', 'x'], ['--peer', 'x']:\n"
        "    try:\n        cli(['join', *flags])\n    except SystemExit:\n        pass\n"
        "print([name for name in ('torch', 'transformers', 'zmq', 'hypercorn') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=BOUND_S, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert len(done.stderr.splitlines()) == 2
