"""The custody rule is safe in every order of events, and the check would notice if it were not."""

import pytest

from tests.custody.exhaustive.instances import DEFAULT, Instance
from tests.custody.exhaustive.mutants import MUTANTS, Mutant
from tests.custody.exhaustive.search import search


@pytest.mark.parametrize("instance", DEFAULT, ids=lambda instance: instance.name)
def test_rule_is_safe(instance: Instance) -> None:
    result = search(instance.rule, instance.bounds)
    assert result.violation is None, str(result)
    assert result.complete
    assert result.states > 500, "a space this small was not searched but missed"


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_mutant_is_caught(mutant: Mutant) -> None:
    result = search(mutant.rule, mutant.bounds)
    assert result.violation is not None, f"{mutant.name} passes: {result}"
    print(f"{mutant.name}: {result}")  # noqa: T201 - pytest -s shows the traces
