"""``meshmoe run``: a text from the node of this box."""

from __future__ import annotations

import sys
import time
import unicodedata
from pathlib import Path
from typing import Any

import click
import msgspec

from meshmoe.cli.client import NodeClient
from meshmoe.cli.options import sampling_options, socket_option
from meshmoe.core.errors import ConfigError
from meshmoe.core.units import format_size


@click.command(epilog="See docs/api.md for what the numbers of --json mean.")
@click.argument("prompt")
@click.option("--chat", is_flag=True, help="Treat PROMPT as a message and answer it, instead of continuing it.")
@sampling_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object at the end, with token ids and timings.")
@socket_option
def run(prompt: str, chat: bool, as_json: bool, socket_path: Path, **sampling: Any) -> None:
    """Continue PROMPT, or answer it with --chat. PROMPT `-` reads standard input, exactly as it is."""
    if prompt == "-":
        prompt = _standard_input()
    asked = {name: value for name, value in sampling.items() if value is not None and value is not False}
    asked |= {"stream": True, "stream_options": {"include_usage": True}, "meshmoe": {"token_ids": True}}
    if chat:
        path, asked["messages"] = "/v1/chat/completions", [{"role": "user", "content": prompt}]
    else:
        path, asked["prompt"] = "/v1/completions", prompt
    started_s = time.monotonic()
    written = _Written(show=not as_json)
    for event in NodeClient(socket_path).post_events(path, asked):
        written.add(event)
    if as_json:
        click.echo(msgspec.json.encode(written.summary(time.monotonic() - started_s)).decode())
    else:
        written.end()


def _standard_input() -> str:
    try:
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        raise ConfigError(f"standard input is not UTF-8 text (byte {error.start})") from None


class _Written:
    """What has come so far.

    Args:
        show: Whether to print the text as it comes.
    """

    def __init__(self, *, show: bool) -> None:
        self._show = show
        self._terminal = sys.stdout.isatty()
        self._model = ""
        self._text: list[str] = []
        self._token_ids: list[int] = []
        self._finish_reason: str | None = None
        self._report: dict[str, Any] = {}

    def add(self, event: dict[str, Any]) -> None:
        """Take in a chunk of either endpoint."""
        self._model = event["model"]
        self._report = event.get("meshmoe", self._report)
        for choice in event["choices"]:
            text = choice["text"] if "text" in choice else choice["delta"].get("content", "")
            self._text.append(text)
            self._token_ids += choice.get("meshmoe", {}).get("token_ids", ())
            self._finish_reason = choice["finish_reason"]
            if self._show and text:
                sys.stdout.write(_harmless(text) if self._terminal else text)
                sys.stdout.flush()

    def end(self) -> None:
        """Finish the line, and on a terminal say how it went."""
        if self._terminal or not "".join(self._text).endswith("\n"):
            sys.stdout.write("\n")
            sys.stdout.flush()
        if sys.stderr.isatty():
            report = self._report
            drafts = ""
            if report["acceptance"] is not None:
                drafts = f"{report['tokens_per_pass']:.2f} tokens a pass ({report['acceptance']:.0%} of drafts right), "
            click.secho(
                f"{report['completion_tokens']} tokens, {report['tokens_per_s']:.1f} tok/s, "
                f"{report['rounds_per_token']:.2f} rounds a token, {drafts}hit ratio {report['hit_ratio']:.0%}, "
                f"{format_size(report['sent_bytes'])} sent",
                dim=True,
                err=True,
            )

    def summary(self, total_s: float) -> dict[str, Any]:
        """The object that --json prints; its fields are stable."""
        report = dict(self._report)
        names = ("queue_s", "prefill_s", "decode_s", "remote_wait_s", "tokens_per_s")
        timings = {name: report.pop(name) for name in names}
        return {
            "model": self._model,
            "text": "".join(self._text),
            "token_ids": self._token_ids,
            "finish_reason": self._finish_reason,
            "timings": {**timings, "total_s": round(total_s, 6)},
            **report,
        }


def _harmless(text: str) -> str:
    """Without control characters, with which a model could write to the terminal's title or settings."""
    return "".join("\N{REPLACEMENT CHARACTER}" if _is_control(character) else character for character in text)


def _is_control(character: str) -> bool:
    return character not in "\n\t" and unicodedata.category(character) == "Cc"
