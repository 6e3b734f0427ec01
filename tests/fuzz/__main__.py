"""Fuzz one target with atheris: ``python -m tests.fuzz TARGET [--seconds N]`` (``pip install atheris`` first).

Interesting inputs and crashes go to a directory that is kept: ``--corpus``, by default one of the temporary directory.
What crashes belongs into tests/fuzz/corpus/TARGET, where the default suite runs it for ever, and a corpus that has
grown into tests/fuzz/corpus/TARGET.zip.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import tempfile
from pathlib import Path

import atheris

SOURCES = Path(__file__).parents[2]
COMPILED = [
    ".".join(path.relative_to(SOURCES).with_suffix("").parts)
    for path in (SOURCES / "meshmoe").rglob("*.py")
    if "numba" in path.read_text() or "import compiled" in path.read_text()
]
"""Hold functions for numba, which cannot compile what atheris makes of them."""

RSS_LIMIT_MB = 4096
"""Under atheris, though not without it, the target ``exchange`` grows by a third of a kilobyte an input."""


def main() -> None:
    with atheris.instrument_imports(include=["meshmoe"], exclude=COMPILED):
        from tests.fuzz.targets import TARGETS, kept, seeds
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", choices=list(TARGETS))
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--corpus", type=Path, default=Path(tempfile.gettempdir()) / "meshmoe-fuzz")
    arguments = parser.parse_args()
    corpus = arguments.corpus / arguments.target
    corpus.mkdir(parents=True, exist_ok=True)
    for data in [*seeds()[arguments.target], *kept(arguments.target)]:
        (corpus / hashlib.sha1(data, usedforsecurity=False).hexdigest()).write_bytes(data)
    flags = [f"-max_total_time={arguments.seconds}", "-max_len=4096", "-timeout=10", f"-rss_limit_mb={RSS_LIMIT_MB}"]
    flags.append(f"-artifact_prefix={arguments.corpus}/crash-{arguments.target}-")
    atheris.Setup([sys.argv[0], str(corpus), *flags], TARGETS[arguments.target])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
