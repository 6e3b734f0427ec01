"""Messages to frames and back: the one place that knows the bytes.

The message frame is a msgpack map: the struct's fields, its tag ``t``, the protocol version ``v``, and for a parcel
with a tensor its description ``x``; or ``s``, then fields and description are a slip (`meshmoe.wire.slips`). msgpack
reads and writes it under tight limits; msgspec turns the plain dict into a typed struct whose bounds have been checked.
A struct is looked up by its tag here, rather than by msgspec through a Union, because msgspec rebuilds its tables for a
Union at every call (25 us a message) but keeps those of a struct (1 us).

Whatever bytes come in, `Codec.decode` either returns a valid message or raises `WireError` with one line. What a
hostile header can cost is bounded too: msgpack reserves a list as soon as it reads its length, so the worst case is a
header nested as deep as msgpack allows (1024) in lists that each claim `_ITEMS_MAX` items: 64 MiB for a moment, not
gigabytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import msgpack
import msgspec

from meshmoe.admission.messages import ADMISSION_MESSAGES
from meshmoe.core.errors import WireError
from meshmoe.core.messages import Message
from meshmoe.custody.messages import CUSTODY_MESSAGES
from meshmoe.gossip.messages import GOSSIP_MESSAGES
from meshmoe.membership.messages import MEMBERSHIP_MESSAGES
from meshmoe.placement.exchange.messages import EXCHANGE_MESSAGES
from meshmoe.wire.frames import FRAMES_MAX, HEADER_BYTES_MAX, PARCEL_BYTES_MAX, Frame, TensorFrame, TensorHeader
from meshmoe.wire.messages import PROTOCOL_VERSION, ROWS_MAX, RUNTIME_MESSAGES
from meshmoe.wire.slips import SLIP_KEY, read_slip

# msgpack ships no types; what crosses this name is annotated where it is used.
_msgpack: Any = msgpack

_TAG_KEY = "t"
_VERSION_KEY = "v"
_TENSOR_KEY = "x"

_ITEMS_MAX = ROWS_MAX
"""Items of one list or map in a header: the rows of a call are the longest list that any message has."""

# bytes stay bytes (msgspec would otherwise write base64), and keys of maps are always text.
_BUILTIN_TYPES = (bytes,)


class VersionError(WireError):
    """A message of a node that speaks another version of the protocol."""

    def __init__(self, ours: int, theirs: int) -> None:
        older = "it" if theirs < ours else "this node"
        super().__init__(f"peer speaks protocol version {theirs}, this node speaks {ours}: upgrade {older}")
        self.ours = ours
        self.theirs = theirs


class Decoded(NamedTuple):
    """A parcel taken apart.

    Attributes:
        message: The validated message.
        payload: The frames after the message (and after the tensor, if there is one), untouched.
        tensor: The tensor's description and bytes, of matching size; `meshmoe.wire.tensors` makes it one of torch's.
    """

    message: Message
    payload: list[Frame]
    tensor: TensorFrame | None


class Codec:
    """Encodes and decodes a closed set of message types. Not thread-safe: one thread, or one codec a thread."""

    def __init__(self, message_types: Iterable[type[Message]], *, version: int = PROTOCOL_VERSION) -> None:
        """Make a codec.

        Args:
            message_types: Tagged structs, all tags different.
            version: Written into every message, and the only one accepted.
        """
        self._version = version
        self._type_of_tag: dict[Any, type[Message]] = {}
        for message_type in message_types:
            config = message_type.__struct_config__
            names = set(message_type.__struct_encode_fields__)
            assert config.tag_field == _TAG_KEY, f"{message_type.__name__} is not tagged with {_TAG_KEY!r}"
            assert config.tag not in self._type_of_tag, f"two messages have the tag {config.tag!r}"
            assert not names & {_TAG_KEY, _VERSION_KEY, _TENSOR_KEY, SLIP_KEY}, (
                f"{message_type.__name__} uses a reserved field"
            )
            self._type_of_tag[config.tag] = message_type
        self._packer = _msgpack.Packer(use_bin_type=True)

    def slip_header(self, tag: str) -> bytes:
        """The message frame of whatever has this tag and travels as a slip."""
        assert tag in self._type_of_tag
        header: bytes = self._packer.pack({_TAG_KEY: tag, SLIP_KEY: 1, _VERSION_KEY: self._version})
        return header

    @property
    def message_types(self) -> tuple[type[Message], ...]:
        """What this codec knows, in the order given."""
        return tuple(self._type_of_tag.values())

    def encode(self, message: Message, *payload: Frame, tensor: TensorFrame | None = None) -> list[Frame]:
        """Make the frames of a parcel.

        Args:
            message: Of one of the codec's types.
            payload: Frames that follow the message as they are.
            tensor: From `meshmoe.wire.tensors.pack_tensor`; travels between the message and the payload.

        Raises:
            WireError: The parcel would break a bound that every receiver enforces.
        """
        fields: dict[str, Any] = msgspec.to_builtins(message, builtin_types=_BUILTIN_TYPES, str_keys=True)
        fields[_VERSION_KEY] = self._version
        frames: list[Frame]
        if tensor is None:
            header: bytes = self._packer.pack(fields)
            frames = [header, *payload]
        else:
            described, data = tensor
            fields[_TENSOR_KEY] = (described.dtype, described.rows, described.columns)
            header = self._packer.pack(fields)
            frames = [header, data, *payload]
        if len(header) > HEADER_BYTES_MAX:
            raise WireError(f"{type(message).__name__} takes {len(header)} bytes, the limit is {HEADER_BYTES_MAX}")
        _check_bounds(frames)
        return frames

    def decode(self, frames: Sequence[Frame]) -> Decoded:
        """Take a parcel apart and validate it.

        Raises:
            VersionError: The sender speaks another version.
            WireError: The frames are not a valid message, for any other reason.
        """
        if not frames:
            raise WireError("empty parcel: no message frame")
        _check_bounds(frames)
        fields = _unpack(frames[0])
        self._check_version(fields.pop(_VERSION_KEY, None))
        tensor = None
        first_payload = 1
        if fields.pop(SLIP_KEY, None) is not None:
            if len(frames) < 3:
                raise WireError("message with a slip, but its frames are missing")
            said, described = read_slip(fields.get(_TAG_KEY), frames[1])
            fields |= said
            tensor = _tensor_frame(described, frames, 2)
            first_payload = 3
        elif (described := fields.pop(_TENSOR_KEY, None)) is not None:
            tensor = _tensor_frame(described, frames, 1)
            first_payload = 2
        return Decoded(self._message(fields), list(frames[first_payload:]), tensor)

    def _check_version(self, version: object) -> None:
        if type(version) is not int:
            raise WireError(f"message without a protocol version (found {_short(version)})")
        if version != self._version:
            raise VersionError(self._version, version)

    def _message(self, fields: dict[str, Any]) -> Message:
        tag = fields.get(_TAG_KEY)
        message_type = self._type_of_tag.get(tag) if type(tag) is str else None
        if message_type is None:
            raise WireError(f"unknown message type {_short(tag)}")
        try:
            return msgspec.convert(fields, message_type, builtin_types=_BUILTIN_TYPES, str_keys=True)
        except Exception as error:
            # Any: messages may check themselves (``__post_init__``), and a peer's bytes must not choose our exception.
            raise WireError(f"invalid {message_type.__name__}: {_short(error)}") from None


def _check_bounds(frames: Sequence[Frame]) -> None:
    if len(frames) > FRAMES_MAX:
        raise WireError(f"parcel of {len(frames)} frames, the limit is {FRAMES_MAX}")
    total_bytes = 0
    for frame in frames:
        total_bytes += frame.nbytes if type(frame) is memoryview else len(frame)
    if total_bytes > PARCEL_BYTES_MAX:
        raise WireError(f"parcel of {total_bytes} bytes, the limit is {PARCEL_BYTES_MAX}")


def _unpack(header: Frame) -> dict[str, Any]:
    if len(header) > HEADER_BYTES_MAX:
        raise WireError(f"message frame of {len(header)} bytes, the limit is {HEADER_BYTES_MAX}")
    try:
        fields = _msgpack.unpackb(
            header,
            raw=False,
            strict_map_key=True,
            max_str_len=HEADER_BYTES_MAX,
            max_bin_len=HEADER_BYTES_MAX,
            max_array_len=_ITEMS_MAX,
            max_map_len=_ITEMS_MAX,
            # Refuses extension types and timestamps: the shortest of them has a length of one.
            max_ext_len=0,
            ext_hook=_refuse_extension,
        )
    except (ValueError, TypeError, RecursionError) as error:
        raise WireError(f"message frame is not msgpack: {type(error).__name__} {_short(error)}") from None
    if type(fields) is not dict:
        raise WireError(f"message frame is not a map but {_short(fields)}")
    return fields


def _refuse_extension(code: int, data: bytes) -> object:
    raise ValueError(f"extension type {code} of {len(data)} bytes")


def _tensor_frame(described: object, frames: Sequence[Frame], at: int) -> TensorFrame:
    try:
        header = msgspec.convert(described, TensorHeader)
    except (msgspec.MsgspecError, ValueError, TypeError) as error:
        raise WireError(f"invalid tensor description: {_short(error)}") from None
    if len(frames) <= at:
        raise WireError("tensor described, but its frame is missing")
    data = frames[at]
    size_bytes = data.nbytes if isinstance(data, memoryview) else len(data)
    if size_bytes != header.size_bytes:
        raise WireError(f"tensor frame of {size_bytes} bytes where {header} needs {header.size_bytes}")
    return TensorFrame(header, data)


def _short(value: object) -> str:
    """At most 120 characters of what a peer sent: an error line is not a way to flood a log."""
    text = str(value) if isinstance(value, Exception) else repr(value)
    return text if len(text) <= 120 else text[:117] + "..."


CODEC = Codec(
    (
        *RUNTIME_MESSAGES,
        *ADMISSION_MESSAGES,
        *MEMBERSHIP_MESSAGES,
        *GOSSIP_MESSAGES,
        *CUSTODY_MESSAGES,
        *EXCHANGE_MESSAGES,
    )
)
"""Knows every message of a node."""

encode = CODEC.encode
decode = CODEC.decode
