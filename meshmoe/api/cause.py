"""What really went wrong, out of the exception groups that nurseries make."""

from __future__ import annotations

from meshmoe.core.errors import MeshmoeError


def cause(error: BaseException) -> BaseException:
    """Find what really went wrong inside the exception groups that nurseries make.

    A message meant for people wins over anything else in the group, because the rest is usually its consequence.
    """
    if not isinstance(error, BaseExceptionGroup):
        return error
    leaves = [cause(inner) for inner in error.exceptions]
    meant_for_people = [leaf for leaf in leaves if isinstance(leaf, MeshmoeError)]
    ordinary = [leaf for leaf in leaves if isinstance(leaf, Exception)]
    return (meant_for_people or ordinary or leaves)[0]
