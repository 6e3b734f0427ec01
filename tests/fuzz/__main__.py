"""Fuzz one target with atheris: ``python -m tests.fuzz TARGET [--seconds N]`` (``pip install atheris`` first).

Interesting inputs and crashes go to a directory that is kept: ``--corpus``, by default one of the temporary directory.
What crashes belongs into tests/fuzz/corpus/TARGET, where the default suite runs it for ever.
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

KEPT = Path(__file__).parent / "corpus"


def main() -> None:
    with atheris.instrument_imports(include=["meshmoe"], exclude=COMPILED):
        from tests.fuzz.targets import TARGETS, seeds
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", choices=list(TARGETS))
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--corpus", type=Path, default=Path(tempfile.gettempdir()) / "meshmoe-fuzz")
    arguments = parser.parse_args()
    corpus = arguments.corpus / arguments.target
    corpus.mkdir(parents=True, exist_ok=True)
    kept = sorted(KEPT.glob(f"{arguments.target}/*"))
    for data in [*seeds()[arguments.target], *(path.read_bytes() for path in kept)]:
        (corpus / hashlib.sha1(data, usedforsecurity=False).hexdigest()).write_bytes(data)
    flags = [f"-max_total_time={arguments.seconds}", "-max_len=4096", "-timeout=10", "-rss_limit_mb=2048"]
    flags.append(f"-artifact_prefix={arguments.corpus}/crash-{arguments.target}-")
    atheris.Setup([sys.argv[0], str(corpus), *flags], TARGETS[arguments.target])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
