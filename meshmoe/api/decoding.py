"""From bytes to a checked request body, with errors that name the position or the field."""

from __future__ import annotations

import json
import re
from typing import TypeVar

import msgspec

from meshmoe.api.request_types import GenerationFields
from meshmoe.core.errors import RequestError

Body = TypeVar("Body", bound=GenerationFields)

_AT_FIELD = re.compile(r"(?P<what>.*) - at (?:`key` in )?`\$\.?(?P<path>.*)`\Z", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(?P<field>\w+)`")


def decode_body(data: bytes, body_type: type[Body]) -> Body:
    """Read a request's JSON body.

    Args:
        data: What the client sent.
        body_type: The struct to read it into.

    Raises:
        RequestError: It is not JSON (the message says where), or a field has a wrong type or value (it is named), or
            asks for something that is not supported.
    """
    try:
        body = msgspec.json.decode(data, type=body_type)
    except msgspec.ValidationError as error:
        raise _wrong_field(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RequestError(f"the body is not valid JSON: {_position(data, error)}", code="invalid_json") from None
    except RecursionError:
        raise RequestError("the body is not usable JSON: it is nested too deeply", code="invalid_json") from None
    _refuse_unsupported(body)
    return body


def _wrong_field(text: str) -> RequestError:
    """Turn msgspec's message into one that begins with the field's name."""
    match = _AT_FIELD.match(text)
    what, path = (match["what"], match["path"]) if match else (text, "")
    what = what.replace("`", "").replace(" | null", "")
    missing = _MISSING.match(text)
    if missing:
        path = f"{path}.{missing['field']}" if path else missing["field"]
        return RequestError(f"{path} is missing", param=path, code="missing_required_parameter")
    if not path:
        return RequestError(f"the body must be a JSON object: {_lower_first(what)}", code="invalid_type")
    return RequestError(f"{path}: {_lower_first(what)}", param=path, code="invalid_value")


def _lower_first(text: str) -> str:
    return text[:1].lower() + text[1:]


def _position(data: bytes, error: Exception) -> str:
    """Say where the JSON breaks; the standard library counts lines and columns, which msgspec does not."""
    if not data.strip():
        return "it is empty"
    try:
        json.loads(data)
    except json.JSONDecodeError as located:
        return f"{_lower_first(located.msg)}, line {located.lineno} column {located.colno}"
    except UnicodeDecodeError as located:
        return f"it is not UTF-8, byte {located.start}"
    except (RecursionError, ValueError):
        pass
    # The lenient parser of the standard library takes NaN and lone surrogates, which are not JSON text.
    return _lower_first(
        str(error)
        .removeprefix("JSON is malformed: ")
        .replace("Input data was truncated", "it has half of a surrogate pair")
    )


def _refuse_unsupported(body: GenerationFields) -> None:
    for name, neutral in body.REFUSED.items():
        value = getattr(body, name)
        if value is not None and value not in neutral:
            raise RequestError(f"{name} is not supported here{_why(name)}", param=name, code="unsupported_parameter")


def _why(name: str) -> str:
    if name in ("tools", "tool_choice", "functions", "function_call"):
        return ": this server calls no tools"
    return ""
