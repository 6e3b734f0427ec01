"""Writes docs/messages.md from the message types: ``python -m tests.docs.message_page``."""

from __future__ import annotations

import ast
import inspect
import re
import sys
import textwrap
from pathlib import Path
from typing import Any

import msgspec.inspect as mi

from meshmoe.core.messages import Message
from meshmoe.custody.messages import CUSTODY_MESSAGES
from meshmoe.gossip.messages import GOSSIP_MESSAGES
from meshmoe.membership.messages import MEMBERSHIP_MESSAGES
from meshmoe.wire.codec import CODEC
from meshmoe.wire.messages import PROTOCOL_VERSION

PAGE = Path(__file__).parents[2] / "docs" / "messages.md"

HEAD = f"""# Message reference

Generated from the message types by `python -m tests.docs.message_page`; a test compares the two. How messages travel,
and what they are for, is told in [the protocol](protocol.md).

Protocol version {PROTOCOL_VERSION}. A message is one msgpack map with the fields below, the tag `t` and the version
`v`; an expert call or reply has `x`, the description of its tensor, too, whose bytes follow in a frame of their own,
or `s`, and then it travels as a slip (see [the protocol](protocol.md)).
Every bound is checked when a message arrives; one that breaks a bound is dropped, counted, and never reaches the code
behind it.
"""


def page() -> str:
    """The whole page."""
    groups: dict[str, list[type[Message]]] = {"Joining, expert calls, transfers": []}
    named = {"Membership": MEMBERSHIP_MESSAGES, "Gossip": GOSSIP_MESSAGES, "Custody": CUSTODY_MESSAGES}
    for message_type in CODEC.message_types:
        group = next((name for name, members in named.items() if message_type in members), None)
        if group is None:
            origin = message_type.__module__.split(".")[1]
            known = {"wire": "Joining, expert calls, transfers"}
            group = known.get(origin, origin.capitalize())
        groups.setdefault(group, []).append(message_type)
    records: dict[type, None] = {}
    parts = [HEAD]
    for name, members in groups.items():
        parts.append(f"## {name}\n")
        parts += [_message(member, records) for member in members]
    parts.append("## Records\n\nParts of messages that have parts themselves.\n")
    done: set[type] = set()
    while waiting := [record for record in records if record not in done]:
        for record in waiting:
            done.add(record)
            parts.append(_record(record, records))
    return "\n".join(parts).rstrip() + "\n"


def _message(message_type: type[Message], records: dict[type, None]) -> str:
    tag = message_type.__struct_config__.tag
    return f"### `{tag}` {message_type.__name__}\n\n{_about(message_type)}\n{_fields(message_type, records)}"


def _record(record: type, records: dict[type, None]) -> str:
    how = "an array of the fields in order" if record.__struct_config__.array_like else "a map"  # type: ignore[attr-defined]
    return f"### {record.__name__}\n\n{_about(record)} Written as {how}.\n{_fields(record, records)}"


def _about(struct: type) -> str:
    """The docstring without its list of attributes, in one paragraph a paragraph."""
    text = inspect.getdoc(struct) or ""
    text = re.split(r"\n\s*(?:Attributes|Args|Raises):\n", text)[0]
    return _markdown("\n\n".join(" ".join(part.split()) for part in text.split("\n\n")))


def _markdown(text: str) -> str:
    return text.replace("``", "`").strip()


def _fields(struct: type, records: dict[type, None]) -> str:
    info = mi.type_info(struct)
    assert isinstance(info, mi.StructType)
    if not info.fields:
        return "\nNo fields.\n"
    words = _field_words(struct)
    rows = ["", "| field | type | |", "|---|---|---|"]
    for field in info.fields:
        kind = _kind(field.type, records)
        default = "" if field.required else " (may be absent)"
        rows.append(f"| `{field.encode_name}` | {kind}{default} | {words.get(field.name, '')} |")
    return "\n".join(rows) + "\n"


def _field_words(struct: type) -> dict[str, str]:
    """What the docstring's list, and the strings below fields, say."""
    words: dict[str, str] = {}
    for cls in reversed(struct.__mro__[:-1]):
        try:
            source = textwrap.dedent(inspect.getsource(cls))
        except (OSError, TypeError):
            continue
        body = ast.parse(source).body[0]
        assert isinstance(body, ast.ClassDef)
        for line, after in zip(body.body, body.body[1:], strict=False):
            if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name) and isinstance(after, ast.Expr):
                text = getattr(after.value, "value", None)
                if isinstance(text, str):
                    words[line.target.id] = _markdown(" ".join(text.split()))
    listed = re.search(r"Attributes:\n(.*)", inspect.getdoc(struct) or "", re.DOTALL)
    if listed:
        for names, text in re.findall(r"^ {4}(\w[\w, ]*): (.*(?:\n {8}.*)*)", listed[1], re.MULTILINE):
            for name in names.split(", "):
                words[name] = _markdown(" ".join(text.split()))
    return {name: text.replace("|", "\\|") for name, text in words.items()}


def _kind(kind: mi.Type, records: dict[type, None]) -> str:
    match kind:
        case mi.StructType(cls=cls):
            records.setdefault(cls)
            return f"[{cls.__name__}](#{cls.__name__.lower()})"
        case mi.IntType():
            return "integer" + _bounds(kind.ge, kind.gt, kind.le, kind.lt)
        case mi.FloatType():
            return "number" + _bounds(kind.ge, kind.gt, kind.le, kind.lt)
        case mi.StrType():
            pattern = f", matches `{kind.pattern}`".replace("|", "\\|") if kind.pattern else ""
            return "text" + _length(kind, "characters") + pattern
        case mi.BytesType():
            return "bytes" + _length(kind, "bytes")
        case mi.ListType(item_type=item) | mi.VarTupleType(item_type=item) | mi.SetType(item_type=item):
            return f"list{_length(kind, 'items')} of {_kind(item, records)}"
        case mi.TupleType(item_types=items):
            return "(" + ", ".join(_kind(item, records) for item in items) + ")"
        case mi.DictType(key_type=key, value_type=value):
            return f"map{_length(kind, 'items')} of {_kind(key, records)} to {_kind(value, records)}"
        case mi.UnionType(types=types):
            return " or ".join(_kind(one, records) for one in types)
        case mi.LiteralType(values=values):
            return " or ".join(f"`{value}`" for value in values)
        case mi.EnumType(cls=cls):
            return " or ".join(f"`{member.value}` {member.name.lower()}" for member in cls)
        case mi.NoneType():
            return "null"
        case mi.BoolType():
            return "true or false"
    return type(kind).__name__.removesuffix("Type").lower()


def _bounds(ge: Any, gt: Any, le: Any, lt: Any) -> str:
    low = f"{ge}" if ge is not None else f"above {gt}" if gt is not None else ""
    high = f"{le}" if le is not None else f"below {_power(lt)}" if lt is not None else ""
    return f", {low} to {high}" if low and high else f", {low or high}" if low or high else ""


def _power(number: Any) -> str:
    if isinstance(number, int) and number >= 1 << 16 and number & (number - 1) == 0:
        return f"2^{number.bit_length() - 1}"
    return str(number)


def _length(kind: Any, what: str) -> str:
    least, most = kind.min_length, kind.max_length
    if least is not None and least == most:
        return f" of {least} {what}"
    if most is None:
        return ""
    return f" of {least} to {most} {what}" if least else f" of at most {most} {what}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    sys.stdout.write(f"{PAGE}\n")
