"""A node for the commands of the pages."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType

import httpx

START_S_MAX = 300.0


class RunningNode:
    """A node of the bundled model on the default socket of an environment of its own."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None
        (directory / "bin").mkdir()
        script = directory / "bin" / "meshmoe"
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m meshmoe.cli.main "$@"\n')
        script.chmod(0o755)

    def environment(self, home: Path) -> dict[str, str]:
        """For a user whose node this is."""
        path = f"{self._directory / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
        environment = {key: value for key, value in os.environ.items() if not key.startswith("MESHMOE_")}
        # The cache has compiled kernels and digests, which would take a minute to make anew.
        cache = os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache"))
        own = {"PATH": path, "XDG_RUNTIME_DIR": str(self._directory), "HOME": str(home), "XDG_CACHE_HOME": cache}
        return {**environment, **own}

    def __enter__(self) -> RunningNode:
        state = str(self._directory / "state")
        arguments = ["join", "--name", "docs", "--listen", "127.0.0.1:0", "--state", state]
        self._process = subprocess.Popen(
            [str(self._directory / "bin" / "meshmoe"), *arguments],
            env=self.environment(self._directory),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=(self._directory / "log").open("wb"),
        )
        deadline_s = time.monotonic() + START_S_MAX
        while time.monotonic() < deadline_s and self._process.poll() is None:
            transport = httpx.HTTPTransport(uds=str(self._directory / "meshmoe" / "meshmoe.sock"))
            with httpx.Client(transport=transport, base_url="http://node") as client, suppress(httpx.TransportError):
                if client.get("/health").status_code == 200:
                    return self
            time.sleep(0.2)
        self.__exit__(None, None, None)
        raise AssertionError((self._directory / "log").read_text())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()
