"""Three real processes, none able to hold the model alone, as their users see them: sockets, clients, signals."""

import json
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx2
import openai
import pytest
import trio

from meshmoe.cli.local_mesh import open_local_mesh
from tests.mesh.failover import PROMPTS

pytestmark = pytest.mark.mesh

NAMES = ("attic", "desk", "shop")


@pytest.fixture(scope="module")
def mesh(tmp_path_factory):
    """The mesh lives in a thread of its own for the whole module; tests see the nodes' sockets."""
    directory = tmp_path_factory.mktemp("m")
    started, stop, running = threading.Event(), trio.Event(), {}

    async def main():
        running["token"] = trio.lowlevel.current_trio_token()
        async with open_local_mesh(directory) as nodes:
            for name in (*NAMES, "alone"):
                nodes.add(name, "--capacity", "100%" if name == "alone" else "45%", "--threads", "1")
            nodes.nodes["attic"].start()
            nodes.nodes["alone"].start()
            address = await nodes.join_word("attic")
            for name in NAMES[1:]:
                nodes.nodes[name].start("--peer", address)
            await nodes.wait_serving(*NAMES)
            await nodes.wait_settled(*NAMES)
            await nodes.wait_serving("alone")
            running["mesh"] = nodes
            started.set()
            await stop.wait()

    def run():
        try:
            trio.run(main)
        except BaseException as error:
            running["error"] = error
        finally:
            started.set()

    thread = threading.Thread(target=run)
    thread.start()
    assert started.wait(300)
    if "error" in running:
        raise running["error"]
    yield running["mesh"]
    running["token"].run_sync_soon(stop.set)
    thread.join(60)


def ids(node, prompt, **sampling):
    body = {"model": "default", "prompt": prompt, "max_tokens": 16, "temperature": 0, **sampling}
    transport = httpx2.HTTPTransport(uds=str(node.socket_path))
    with httpx2.Client(transport=transport, base_url="http://node", timeout=120) as client:
        answer = client.post("/v1/completions", json={**body, "meshmoe": {"token_ids": True}})
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]["meshmoe"]["token_ids"]


def test_ten_requests_at_once_on_each_of_three_nodes_are_all_those_of_one_node(mesh):
    expected = {prompt: ids(mesh.nodes["alone"], prompt) for prompt in PROMPTS}
    asked = [(name, prompt) for name in NAMES for prompt in PROMPTS]
    with ThreadPoolExecutor(len(asked)) as pool:
        got = list(pool.map(lambda item: ids(mesh.nodes[item[0]], item[1]), asked))
    for (name, prompt), tokens in zip(asked, got, strict=True):
        assert tokens == expected[prompt], f"{prompt!r} on {name}"


def test_seeded_sampling_is_the_same_on_every_node(mesh):
    sampling = {"temperature": 1.0, "top_p": 0.95, "seed": 11}
    expected = ids(mesh.nodes["alone"], PROMPTS[0], **sampling)
    assert [ids(mesh.nodes[name], PROMPTS[0], **sampling) for name in NAMES] == [expected] * 3


def test_the_openai_client_streams_a_chat(mesh):
    transport = httpx2.HTTPTransport(uds=str(mesh.nodes["shop"].socket_path))
    with openai.OpenAI(
        base_url="http://node/v1", api_key="none", http_client=httpx2.Client(transport=transport)
    ) as client:
        model = client.models.list().data[0].id
        chunks = client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": "What is a server?"}], max_tokens=12, stream=True
        )
        pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert len(pieces) > 1 and "".join(pieces).strip()


def test_curl_streams_a_chat(mesh):
    body = {
        "model": "default",
        "stream": True,
        "max_tokens": 8,
        "messages": [{"role": "user", "content": "What is a server?"}],
    }
    socket_path = str(mesh.nodes["desk"].socket_path)
    out = subprocess.run(
        ["curl", "-sN", "--unix-socket", socket_path, "http://node/v1/chat/completions", "-d", json.dumps(body)],
        capture_output=True,
        timeout=120,
        check=True,
    ).stdout.decode()
    events = [line[6:] for line in out.splitlines() if line.startswith("data: ")]
    assert events[-1] == "[DONE]" and len(events) > 3


def test_status_shows_three_nodes_and_full_coverage(mesh):
    status = json.loads(
        subprocess.run(
            [sys.executable, "-m", "meshmoe.cli.main", "status", "--json", "--socket", mesh.nodes["attic"].socket_path],
            capture_output=True,
            timeout=60,
            check=True,
        ).stdout
    )
    assert {peer["node"] for peer in status["peers"]} == set(NAMES)
    assert status["coverage"]["covered"] == status["coverage"]["total"] == 256
    for peer in status["peers"]:
        assert peer["held_bytes"] <= peer["capacity_bytes"] < status["model"]["expert_bytes_total"]


def test_a_node_that_gets_sigterm_leaves_and_ends_well(mesh):
    """Last, since the mesh is too small without it: the others say so instead of hanging."""
    node = mesh.nodes["shop"]
    node.send_signal(signal.SIGTERM)
    assert node._process.wait(60) == 0
    assert not node.socket_path.exists()
    body = {"model": "default", "prompt": "The", "max_tokens": 4}
    transport = httpx2.HTTPTransport(uds=str(mesh.nodes["attic"].socket_path))
    with httpx2.Client(transport=transport, base_url="http://node", timeout=120) as client:
        answer = client.post("/v1/completions", json=body)
    assert answer.status_code == 503
    assert "bytes" in answer.json()["error"]["message"]
