"""Parts of files on a hub, by HTTP byte ranges.

A hub's answer to a file's name is a redirection to a signed address that soon goes stale, so the address is looked up
once a file, and again when it is refused. A server that does not know ranges would send the whole file: that is seen in
the answer's head, and nothing of it is read.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path

from meshmoe.core.errors import CheckpointError
from meshmoe.model.tensor_files import TensorFiles

TRIES_MAX = 5
"""How often one range is asked for; each time only for what is still missing of it."""

PAUSE_S = 0.5
"""Before the second try; doubled before each further one."""

TIMEOUT_S = 30.0
"""Silence after which a connection is given up."""

STALE = frozenset({401, 403, 410})
PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})

HEADER_BYTES_MAX = 100_000_000
"""The safetensors library takes no longer headers either."""


@dataclass(frozen=True)
class _Source:
    url: str
    location: str
    size_bytes: int


class RangeReader:
    """Reads parts of a repository's files; may be used from any thread."""

    def __init__(self, name: str, commit: str, stop: threading.Event | None = None) -> None:
        """Make one.

        Args:
            name: ``owner/name``.
            commit: The revision, so that all parts are of the same.
            stop: Once it is set, nothing more is asked for.
        """
        self._name, self._commit = name, commit
        self._stop = stop or threading.Event()
        self._sources: dict[str, _Source] = {}
        self._lock = threading.Lock()

    def size_bytes(self, file: str) -> int:
        """The size of a file, as the hub says."""
        return self._source(file).size_bytes

    def read_into(self, file: str, offset_bytes: int, out: memoryview) -> None:
        """Fill ``out`` with the file's bytes from ``offset_bytes`` on.

        Raises:
            CheckpointError: The server does not know ranges, or sends other ones than asked for.
            httpx2.HTTPError: It cannot be reached, or fails, again and again.
            OSError: As above, from deeper below.
        """
        import httpx2

        done = 0
        for attempt in range(TRIES_MAX):
            if self._stop.wait(PAUSE_S * 2 ** (attempt - 1) if attempt else 0):
                raise CheckpointError("stopped: the same command goes on later")
            source = self._source(file)
            try:
                done += self._read_once(file, source, offset_bytes + done, out[done:])
            except _BrokenOffError as broken:
                done += broken.done_bytes
                if attempt + 1 == TRIES_MAX:
                    raise broken.reason from None
            except httpx2.HTTPStatusError as error:
                status = error.response.status_code
                if status in STALE:
                    with self._lock:  # unless another thread has looked it up again meanwhile
                        if self._sources.get(file) is source:
                            del self._sources[file]
                if status not in STALE | PASSING or attempt + 1 == TRIES_MAX:
                    raise
            if done == len(out):
                return
        raise CheckpointError(f"{self._name}: {file} ends before its byte {offset_bytes + len(out)}")

    def _read_once(self, file: str, source: _Source, offset_bytes: int, out: memoryview) -> int:
        import httpx2
        from huggingface_hub import get_session
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # documented, not listed

        end_bytes = offset_bytes + len(out) - 1
        headers = build_hf_headers() if source.location == source.url else {}  # no key for other hosts
        headers |= {"Range": f"bytes={offset_bytes}-{end_bytes}", "Accept-Encoding": "identity"}
        done = 0
        try:
            with get_session().stream("GET", source.location, headers=headers, timeout=TIMEOUT_S) as answer:
                if answer.status_code == httpx2.codes.OK:
                    raise CheckpointError(
                        f"{self._name}: the server of {file} sends whole files only, no parts: fetch the whole model "
                        "(without --part, --capacity, --profile, --trunk-only)"
                    )
                answer.raise_for_status()
                told = answer.headers.get("Content-Range", "")
                if told != f"bytes {offset_bytes}-{end_bytes}/{source.size_bytes}":
                    raise CheckpointError(f"{self._name}: asked for {file}, the server sent {told[:80]!r} of it")
                for chunk in answer.iter_raw():
                    if done + len(chunk) > len(out):
                        raise CheckpointError(f"{self._name}: the server sent more of {file} than it was asked for")
                    out[done : done + len(chunk)] = chunk
                    done += len(chunk)
        except httpx2.TransportError as error:
            raise _BrokenOffError(done, error) from None
        return done

    def _source(self, file: str) -> _Source:
        from huggingface_hub import get_hf_file_metadata, hf_hub_url

        with self._lock:
            known = self._sources.get(file)
        if known is None:
            url = hf_hub_url(self._name, file, revision=self._commit)
            metadata = get_hf_file_metadata(url, retry_on_errors=True)
            if metadata.size is None:
                raise CheckpointError(f"{self._name}: the hub does not tell the size of {file}")
            known = _Source(url, metadata.location, metadata.size)
            with self._lock:
                self._sources[file] = known
        return known


class _BrokenOffError(Exception):
    """A connection that failed after some bytes."""

    def __init__(self, done_bytes: int, reason: Exception) -> None:
        super().__init__(str(reason))
        self.done_bytes, self.reason = done_bytes, reason


class HubTensors(TensorFiles):
    """The tensors of a checkpoint whose headers are here and whose weights are on a hub."""

    def __init__(self, skeleton: Path, reader: RangeReader) -> None:
        """Open one.

        Args:
            skeleton: A checkpoint directory with files made by `fetch_header`.
            reader: For the weights.

        Raises:
            CheckpointError: As `TensorFiles`.
        """
        super().__init__(skeleton)
        self._reader = reader

    def read_into(self, key: str, offset_bytes: int, out: memoryview) -> None:
        """Fill ``out`` with the tensor's bytes from ``offset_bytes`` on. Safe from any thread.

        Raises:
            CheckpointError, httpx2.HTTPError, OSError: As `RangeReader.read_into`.
        """
        file, begin = self.place(key)
        if len(out):
            self._reader.read_into(file.name, begin + offset_bytes, out)


def fetch_header(reader: RangeReader, file: str, directory: Path) -> None:
    """Make a file of the hub's size that has its safetensors header, and a hole where the weights belong.

    So everything that reads and checks headers works on it as on a real one.

    Raises:
        CheckpointError: What the hub has there is no safetensors file.
    """
    size_bytes = reader.size_bytes(file)
    path = directory / file
    if path.is_file() and path.stat().st_size == size_bytes:
        return
    head = bytearray(8)
    if size_bytes > len(head):
        reader.read_into(file, 0, memoryview(head))
    header_bytes = int.from_bytes(head, "little")
    if not 0 < header_bytes <= min(size_bytes - 8, HEADER_BYTES_MAX):
        raise CheckpointError(f"{file} on the hub is not a safetensors file")
    header = bytearray(header_bytes)
    reader.read_into(file, len(head), memoryview(header))
    partial = path.with_name(f".{file}.part")
    with partial.open("wb") as out:
        out.write(head + header)
        out.truncate(size_bytes)
    partial.replace(path)
