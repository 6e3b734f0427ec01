"""From nothing to a first answer on three shells, timed: ``python -m tests.mesh.first_answer``.

Types the four commands of docs/one-box.md as a person would who waits for each to say that it serves: the second and
third are typed together. Prints the seconds, from the first key to the answer.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WAIT_S_MAX = 200.0


def meshmoe(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "meshmoe.cli.main", *arguments]


def start(directory: Path, name: str, *arguments: str) -> subprocess.Popen[bytes]:
    common = ["join", "--name", name, "--state", str(directory / name), "--capacity", "45%", "--no-discovery"]
    where = ["--socket", str(directory / f"{name}.sock"), "--listen", "127.0.0.1:0"]
    log = (directory / f"{name}.log").open("wb")
    return subprocess.Popen(meshmoe(*common, *where, *arguments), stdout=log, stderr=log, env=os.environ)


def wait_for(directory: Path, name: str, words: str) -> str:
    end = time.monotonic() + WAIT_S_MAX
    while time.monotonic() < end:
        lines = (directory / f"{name}.log").read_text(errors="replace").splitlines()
        for line in lines:
            if words in line:
                return line.strip()
        time.sleep(0.02)
    raise SystemExit(f"{name} did not say {words!r}: {lines[-3:]}")


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="mm") as made:
        directory = Path(made)
        nodes: list[subprocess.Popen[bytes]] = []
        try:
            begun = time.monotonic()
            nodes.append(start(directory, "a"))
            line = wait_for(directory, "a", "meshmoe join --peer")
            peer = re.findall(r"mm1-[\w-]+", line)[0]  # logs without a terminal are JSON
            first = time.monotonic() - begun
            nodes += [start(directory, name, "--peer", peer) for name in ("b", "c")]
            for name in ("b", "c"):
                wait_for(directory, name, "meshmoe join --peer")
            joined = time.monotonic() - begun
            tries = 0
            while True:
                tries += 1
                asked = meshmoe("run", "The mesh is", "--max-tokens", "16", "--socket", str(directory / "c.sock"))
                done = subprocess.run(asked, capture_output=True, text=True, check=False)
                if done.returncode == 0:
                    break
                if tries > 60:
                    raise SystemExit(done.stderr)
            answered = time.monotonic() - begun
        finally:
            for node in nodes:
                node.kill()
                node.wait()
    sys.stdout.write(f"first serves {first:.1f} s, all three {joined:.1f} s, answer {answered:.1f} s, asked {tries}\n")
    sys.stdout.write(done.stdout)


if __name__ == "__main__":
    main()
