"""Other programs in the namespaces of a run: what their commands say, and one that really runs there."""

import shlex
import sys
from pathlib import Path

import pytest
import trio
from click.testing import CliRunner

from meshmoe.bench_engine.openai_stream import ServerError, ask
from meshmoe.bench_engine.wires.wires import open_wires
from meshmoe.cli import rivals
from meshmoe.cli.bench import bench
from meshmoe.cli.rivals import Rivals, fill_in, open_rival
from meshmoe.core.config import parse_topology
from tests.namespaces import skip_without_namespaces

TOPOLOGY = """
[default_link]
preset = "edge"
[nodes.a]
[nodes.b]
[nodes.c]
"""
THREE = parse_topology(TOPOLOGY, "trio.toml")

WORKER = """
import socket, sys
listener = socket.create_server((sys.argv[1], int(sys.argv[2])))
while True:
    connection, _ = listener.accept()
    connection.sendall(b"from " + sys.argv[1].encode())
    connection.close()
"""
SERVER = """
import json, socket, sys
from http.server import BaseHTTPRequestHandler, HTTPServer

class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.end_headers()
        for worker in sys.argv[3].split(","):
            host, port = worker.split(":")
            with socket.create_connection((host, int(port))) as connection:
                text = connection.recv(99).decode()
            self.wfile.write(b"data: " + json.dumps({"choices": [{"text": text}]}).encode() + b"\\n\\n")

HTTPServer((sys.argv[1], int(sys.argv[2])), Handler).serve_forever()
"""


def command(tmp_path, name, program, *words):
    path = tmp_path / name
    path.write_text(program)
    return shlex.join([sys.executable, str(path), *words])


def test_words_are_filled_in_and_other_braces_stay():
    words = fill_in(
        """serve --at={host}:{port} --rpc "{workers}" --json '{"a": {}}'""", host="h", port="1", workers="x,y"
    )
    assert words == ["serve", "--at=h:1", "--rpc", "x,y", "--json", '{"a": {}}']


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--against-command", "serve"], "--against-command needs --links namespaces"),
        (["--worker-command", "work"], "go with --against-command"),
        (["--against-command", "serve 'x", "--links", "namespaces"], "No closing quotation"),
        (
            ["--against-command", "serve", "--links", "namespaces", "--against-node", "d"],
            "has no node d: it has a, b, c",
        ),
    ],
)
def test_flags_that_cannot_be_meant(tmp_path, flags, words):
    (tmp_path / "trio.toml").write_text(TOPOLOGY)
    done = CliRunner().invoke(bench, ["mesh", "--topology", str(tmp_path / "trio.toml"), *flags])
    assert words in str(done.exception)


def test_a_server_with_workers_over_the_links(tmp_path):
    skip_without_namespaces()
    wanted = Rivals(
        [command(tmp_path, "server.py", SERVER, "{host}", "{port}", "{workers}")] * 2,
        "b",
        command(tmp_path, "worker.py", WORKER, "{host}", "{port}"),
    )

    async def main(wires):
        async with open_rival(wanted, 1, THREE, wires, tmp_path) as rival:
            before = wires.figures().packets
            answer = await ask(rival.server, "anything", 2)
            assert (rival.server.host, len(rival.pids)) == (wires.host("b"), 3)
            assert rival.name == Path(sys.executable).name + " 2"
            # One event of each worker, whose connection and text went over a link.
            assert (answer.error, len(answer.arrivals_s)) == ("", 2)
            assert wires.figures().packets - before >= 12
        answer = await ask(rival.server, "anything", 2)
        assert "cannot be reached" in answer.error

    with open_wires(THREE) as wires:
        trio.run(main, wires)


def test_a_server_that_does_not_come_up_has_its_last_words_told(tmp_path, monkeypatch):
    skip_without_namespaces()
    monkeypatch.setattr(rivals, "START_S_MAX", 1.0)

    async def main(wires, program):
        async with open_rival(Rivals([command(tmp_path, "server.py", program)]), 0, THREE, wires, tmp_path):
            pass

    with open_wires(THREE) as wires:
        with pytest.raises(ServerError, match="ended with code 1: no model"):
            trio.run(main, wires, "raise SystemExit('no model')")
        with pytest.raises(ServerError, match=r"does not answer after 1 s: .*its log: loading"):
            trio.run(main, wires, "import time; print('loading', flush=True); time.sleep(60)")
