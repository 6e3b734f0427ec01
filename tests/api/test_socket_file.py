from __future__ import annotations

import multiprocessing
import os
import socket
import stat
import tempfile
from pathlib import Path

import pytest

from meshmoe.api import socket_path, unix_socket
from meshmoe.api.socket_path import default_socket_path, prepare_directory
from meshmoe.api.unix_socket import listening_unix_socket
from meshmoe.core.errors import ConfigError
from tests.api.scripted import ScriptedService
from tests.api.serving import Served


def leave_stale(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))


def test_private_and_gone_afterwards(tmp_path: Path) -> None:
    path = tmp_path / "run" / "deep" / "m.sock"
    with listening_unix_socket(path):
        assert stat.S_IMODE(path.lstat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.lstat().st_mode) == 0o700
    assert not path.exists()
    assert list(path.parent.iterdir()) == []


def test_a_stale_file_is_replaced(tmp_path: Path) -> None:
    leave_stale(tmp_path / "m.sock")
    with Served(ScriptedService(), tmp_path / "m.sock") as served, served.client() as client:
        assert client.get("/health").status_code == 200


def test_in_use(tmp_path: Path) -> None:
    path = tmp_path / "m.sock"
    with Served(ScriptedService(), path) as served:
        with pytest.raises(ConfigError) as caught:
            Served(ScriptedService(), path).__enter__()
        expected = f"socket {path} is in use by a running node (pid {os.getpid()}): give another with --socket"
        assert str(caught.value) == expected
        with served.client() as client:
            assert client.get("/health").status_code == 200


def test_only_our_own_file_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "m.sock"
    with listening_unix_socket(path):
        path.unlink()
        leave_stale(path)
        made = path.lstat().st_ino
    assert path.lstat().st_ino == made


def test_already_removed(tmp_path: Path) -> None:
    path = tmp_path / "m.sock"
    with listening_unix_socket(path):
        path.unlink()


def test_the_directory_vanishes(tmp_path: Path) -> None:
    path = tmp_path / "d" / "m.sock"
    with listening_unix_socket(path):
        path.unlink()
        path.parent.rmdir()


def test_too_long(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 100) / "m.sock"
    with pytest.raises(ConfigError, match=r"has 1\d\d bytes, a Unix socket allows 107"), listening_unix_socket(path):
        pass


def test_the_longest_path_works() -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        path = Path(directory) / ("x" * (107 - len(directory) - 1))
        with listening_unix_socket(path):
            assert path.is_socket()
        with pytest.raises(ConfigError, match="108 bytes"), listening_unix_socket(path.with_name(path.name + "x")):
            pass


def test_not_a_socket(tmp_path: Path) -> None:
    path = tmp_path / "m.sock"
    path.write_text("precious")
    with pytest.raises(ConfigError, match="is not a socket"), listening_unix_socket(path):
        pass
    assert path.read_text() == "precious"


def test_the_parent_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot make the directory"), listening_unix_socket(tmp_path / "file" / "s"):
        pass


def test_a_busy_lock_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unix_socket, "LOCK_WAIT_S_MAX", 0.05)
    with (
        unix_socket._locked(tmp_path),
        pytest.raises(ConfigError, match=r"keeps .* locked"),
        listening_unix_socket(tmp_path / "m.sock"),
    ):
        pass


def _contend(path: Path, begin: object, results: object) -> None:
    begin.wait()  # type: ignore[attr-defined]
    try:
        with listening_unix_socket(path):
            results.put("mine")  # type: ignore[attr-defined]
            begin.wait()  # type: ignore[attr-defined]
    except ConfigError as error:
        results.put(str(error))  # type: ignore[attr-defined]
        begin.wait()  # type: ignore[attr-defined]


def test_of_nodes_that_start_together_one_wins(tmp_path: Path) -> None:
    path, count = tmp_path / "m.sock", 4
    leave_stale(path)
    spawn = multiprocessing.get_context("fork")
    begin, results = spawn.Barrier(count), spawn.Queue()
    children = [spawn.Process(target=_contend, args=(path, begin, results)) for _ in range(count)]
    for child in children:
        child.start()
    answers = sorted(results.get(timeout=10) for _ in children)
    for child in children:
        child.join(10)
    assert answers[0] == "mine"
    assert all("in use by a running node" in answer for answer in answers[1:])


def test_default_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MESHMOE_SOCKET", raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert default_socket_path() == tmp_path / "meshmoe" / "meshmoe.sock"
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "not-there"))
    fallback = Path(tempfile.gettempdir()) / f"meshmoe-{os.getuid()}" / "meshmoe.sock"
    assert default_socket_path() == fallback
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert default_socket_path() == fallback
    monkeypatch.setenv("MESHMOE_SOCKET", "/somewhere/s")
    assert default_socket_path() == Path("/somewhere/s")


@pytest.mark.parametrize("trap", ["link", "open"])
def test_a_fallback_directory_of_somebody_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trap: str) -> None:
    monkeypatch.setattr(socket_path.tempfile, "gettempdir", lambda: str(tmp_path))
    directory = tmp_path / f"meshmoe-{os.getuid()}"
    if trap == "link":
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        directory.symlink_to(tmp_path / "elsewhere")
    else:
        directory.mkdir()
        directory.chmod(0o777)
    with pytest.raises(ConfigError, match="not a private directory"):
        prepare_directory(directory / "meshmoe.sock")
