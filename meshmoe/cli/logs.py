"""The log of ``meshmoe join``: lines for people on a terminal, one JSON object a line for everything else.

A JSON line has ``time`` (UTC), ``level``, ``module``, ``message``, ``node``, ``generation`` (the node's life, once it
has begun), and whatever the place that logs has bound: ``expert``, ``peer``, ``epoch`` of the claim, ``migration`` and
its ``outcome``. What the command tells people becomes such lines too.
"""

from __future__ import annotations

import io
import json
import logging
import sys
import time
from typing import IO, Any, cast

from rich.console import Console

FORMATS = ("auto", "human", "json")

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}

log = logging.getLogger("meshmoe.join")


class Log:
    """The log of this process.

    Args:
        log_format: One of `FORMATS`; ``auto`` means ``human`` on a terminal and ``json`` elsewhere.
        verbose: Log more.
        node: Bound to every line.
    """

    def __init__(self, log_format: str, *, verbose: bool, node: str) -> None:
        self._bound: dict[str, Any] = {"node": node}
        self._json = log_format == "json" or (log_format == "auto" and not sys.stderr.isatty())
        logging.basicConfig(level=logging.WARNING, handlers=[self._handler()])
        logging.getLogger("meshmoe").setLevel(logging.DEBUG if verbose else logging.INFO)

    def bind(self, **values: Any) -> None:
        """Add ``values`` to every later line."""
        self._bound |= values

    def console(self) -> Console:
        """Where the command tells people how it goes."""
        if self._json:
            return Console(file=cast("IO[str]", _LogWriter()), highlight=False, width=10_000)
        return Console(stderr=True, highlight=False)

    def _handler(self) -> logging.Handler:
        handler: logging.Handler
        if self._json:
            handler = logging.StreamHandler()
            handler.setFormatter(_JsonFormatter(self._bound))
        elif sys.stderr.isatty():
            from rich.logging import RichHandler

            handler = RichHandler(console=Console(stderr=True), show_path=False, log_time_format="%H:%M:%S")
            handler.setFormatter(logging.Formatter("%(message)s"))
        else:
            handler = logging.StreamHandler()
            handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        return handler


class _JsonFormatter(logging.Formatter):
    """One object a line; what a caller put into ``extra`` becomes members."""

    def __init__(self, bound: dict[str, Any]) -> None:
        super().__init__()
        self._bound = bound

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {
            "time": f"{stamp}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "module": record.name,
            "message": record.getMessage(),
            **self._bound,
        }
        line |= {name: value for name, value in vars(record).items() if name not in _STANDARD}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


class _LogWriter(io.TextIOBase):
    """A file whose lines are log records."""

    def __init__(self) -> None:
        self._rest = ""

    def write(self, text: str) -> int:
        """Log every whole line."""
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            if line.strip():
                log.info("%s", line.strip())
        return len(text)
