from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

import meshmoe
from meshmoe.client import AsyncMesh, Mesh, NoNodeError
from meshmoe.core.errors import CapacityError, ConfigError, MeshmoeError, RequestError
from tests.api.scripted import TEXT, ScriptedService, tokenizer
from tests.api.serving import Served

FIVE = tokenizer().decode(tokenizer().encode(TEXT)[:5])


@pytest.fixture
def service() -> ScriptedService:
    return ScriptedService()


@pytest.fixture
def served(service: ScriptedService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    monkeypatch.setenv("MESHMOE_SOCKET", str(tmp_path / "m.sock"))
    with Served(service, tmp_path / "m.sock") as running:
        yield running


@pytest.fixture
def mesh(served: Served) -> Iterator[Mesh]:
    with meshmoe.connect() as made:
        yield made


def test_a_text_and_what_it_took(mesh: Mesh, service: ScriptedService) -> None:
    answer = mesh.complete("The mesh", max_tokens=5, temperature=0.5, seed=3, stop=["END"])
    assert (answer.text, answer.finish_reason, answer.model) == (FIVE, "length", "edge-12m")
    assert answer.token_ids == tokenizer().encode(TEXT)[:5]
    assert answer.report is not None
    assert answer.report.completion_tokens == 5
    (request,) = service.requests
    sampling = request.sampling
    assert (sampling.temperature, sampling.seed, sampling.stop) == (0.5, 3, ("END",))


def test_a_chat_is_a_text_or_messages(mesh: Mesh, service: ScriptedService) -> None:
    asked: list[Any] = ["hello", [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hello"}]]
    for messages in asked:
        assert mesh.chat(messages, max_tokens=5).text == FIVE
    first, second = (tokenizer().decode(request.prompt_ids) for request in service.requests)
    assert second == "Be brief.\n\n" + first


def test_pieces(mesh: Mesh) -> None:
    stream = mesh.stream("The mesh", max_tokens=5)
    pieces = list(stream)
    assert len(pieces) == 5
    assert "".join(pieces) == FIVE == stream.answer.text


def test_closing_a_stream_ends_the_writing(mesh: Mesh, served: Served, service: ScriptedService) -> None:
    service.delay_s = 0.01
    with mesh.stream("The mesh", max_tokens=400) as stream:
        for _ in stream:
            break
        assert service.active == 1
    served.wait_until(lambda: service.active == 0)


class Person(msgspec.Struct):
    name: str


@pytest.mark.parametrize("schema", [Person, msgspec.json.schema(Person)])
def test_schemas_of_types(mesh: Mesh, service: ScriptedService, schema: Any) -> None:
    mesh.complete("Who?", max_tokens=2, schema=schema)
    sent = msgspec.json.decode(service.requests[-1].sampling.json_schema or "")
    assert sent["$defs"]["Person"]["properties"] == {"name": {"type": "string"}}


def test_status(mesh: Mesh) -> None:
    status = mesh.status()
    assert [peer.node for peer in status.peers] == ["a", "b-with-a-longer-name"]


def test_errors_are_of_their_kind(mesh: Mesh, service: ScriptedService) -> None:
    with pytest.raises(RequestError, match="temperature"):
        mesh.complete("x", temperature=7)
    service.fail_after = (2, CapacityError("the mesh lacks 3 MiB"))
    stream = mesh.stream("x", max_tokens=9)
    with pytest.raises(CapacityError, match="3 MiB"):
        list(stream)
    assert stream.answer.text
    assert stream.answer.report is None
    service.not_ready = MeshmoeError("this node is starting")
    with pytest.raises(MeshmoeError, match="starting"):
        mesh.chat("x")


def test_nobody_there(tmp_path: Path) -> None:
    with meshmoe.connect(tmp_path / "none") as mesh, pytest.raises(NoNodeError, match=r"no node answers at .*none"):
        mesh.status()
    with pytest.raises(ConfigError, match="107"):
        meshmoe.connect("x" * 200)


def test_over_tcp_with_a_key(service: ScriptedService, tmp_path: Path) -> None:
    with Served(service, tmp_path / "m.sock", ("127.0.0.1", 0), api_key="k" * 20) as served:
        assert served.addresses is not None
        host, port = served.addresses.http or ("", 0)
        with meshmoe.connect(f"http://{host}:{port}/", api_key="k" * 20) as mesh:
            assert mesh.complete("x", max_tokens=5).text == FIVE
        with meshmoe.connect(f"http://{host}:{port}") as mesh, pytest.raises(RequestError, match="no API key"):
            mesh.status()


async def use_it_all(service: ScriptedService, mesh: AsyncMesh) -> None:
    async with mesh:
        assert (await mesh.complete("The mesh", max_tokens=5)).text == FIVE
        assert (await mesh.chat("hello", max_tokens=5)).finish_reason == "length"
        async with mesh.stream_chat("hello", max_tokens=5) as stream:
            assert "".join([piece async for piece in stream]) == FIVE
        assert (await mesh.status()).node == "a"
        with pytest.raises(RequestError, match="temperature"):
            await mesh.complete("x", temperature=7)
        service.delay_s = 0.01
        async with mesh.stream("The mesh", max_tokens=400) as stream:
            async for _ in stream:
                break
            assert service.active == 1


@pytest.mark.parametrize("run", [trio.run, lambda f: asyncio.run(f())], ids=["trio", "asyncio"])
def test_asynchronously(served: Served, service: ScriptedService, run: Callable[[Callable[[], Awaitable[None]]], None]):
    run(lambda: use_it_all(service, meshmoe.connect_async()))
    served.wait_until(lambda: service.active == 0)
