"""Hypothesis strategies for any message type, from its annotations.

Hypothesis knows no msgspec constraints, so the strategies are made from `msgspec.inspect`, which also means that a
bound someone loosens or adds is followed here by itself.
"""

from __future__ import annotations

import functools
from typing import Any

import msgspec
from hypothesis import strategies as st
from msgspec import inspect

from meshmoe.core.messages import Message


@functools.cache
def messages(message_type: type[Message]) -> st.SearchStrategy[Any]:
    """Valid messages of one type."""
    return _struct(inspect.type_info(message_type))


@functools.cache
def _matching(pattern: str) -> st.SearchStrategy[str]:
    return st.from_regex(pattern)


def _struct(info: inspect.StructType) -> st.SearchStrategy[Any]:
    fields = {field.name: strategy_of(field.type) for field in info.fields}

    def build(values: dict[str, Any]) -> Any:
        try:
            return info.cls(**values)
        except ValueError:  # refused by the struct's own rules
            return None

    return st.fixed_dictionaries(fields).map(build).filter(lambda built: built is not None)


def strategy_of(info: inspect.Type) -> st.SearchStrategy[Any]:
    """Values that a field of this type may have."""
    match info:
        case inspect.StructType():
            return _struct(info)
        case inspect.IntType():
            low = info.ge if info.ge is not None else (info.gt + 1 if info.gt is not None else -(1 << 63))
            high = info.le if info.le is not None else (info.lt - 1 if info.lt is not None else (1 << 63) - 1)
            return st.integers(low, high)
        case inspect.FloatType():
            low = info.ge if info.ge is not None else info.gt
            high = info.le if info.le is not None else info.lt
            return st.floats(
                low,
                high,
                exclude_min=info.gt is not None and info.ge is None,
                exclude_max=info.lt is not None and info.le is None,
                allow_nan=False,
                allow_infinity=low is None and high is None,
            )
        case inspect.StrType():
            if info.pattern is not None:
                return _matching(info.pattern)
            return st.text(
                st.characters(exclude_categories=["Cs"]),
                min_size=info.min_length or 0,
                max_size=min(info.max_length or 20, 20),
            )
        case inspect.BytesType():
            least = info.min_length or 0
            return st.binary(min_size=least, max_size=max(least, min(info.max_length or 20, 20)))
        case inspect.BoolType():
            return st.booleans()
        case inspect.NoneType():
            return st.none()
        case inspect.LiteralType():
            return st.sampled_from(info.values)
        case inspect.EnumType():
            return st.sampled_from(list(info.cls))
        case inspect.UnionType():
            return st.one_of([strategy_of(member) for member in info.types])
        case inspect.ListType() | inspect.VarTupleType():
            items = st.lists(
                strategy_of(info.item_type), min_size=info.min_length or 0, max_size=min(info.max_length or 4, 4)
            )
            return items if isinstance(info, inspect.ListType) else items.map(tuple)
        case inspect.TupleType():
            return st.tuples(*[strategy_of(item) for item in info.item_types])
        case inspect.DictType():
            return st.dictionaries(
                strategy_of(info.key_type),
                strategy_of(info.value_type),
                min_size=info.min_length or 0,
                max_size=min(info.max_length or 4, 4),
            )
    raise NotImplementedError(f"no strategy for {msgspec.inspect.type_info(info)}")
