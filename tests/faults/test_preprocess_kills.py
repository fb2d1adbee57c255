"""A few faults in preprocessing here; ``python -m tests.faults.preprocess_kills`` tries as many as wanted."""

from __future__ import annotations

import pytest

from tests.faults.preprocess_kills import FAULTS, attempts


def test_a_few_faults() -> None:
    few = ("terminate", "kill a worker", "kill at a rename")
    found = list(attempts(3, names=["corpus"], faults=few, megabytes=0.3))
    assert [attempt.failures for attempt in found] == [[]] * 3


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_many_faults(fault: str) -> None:
    found = list(attempts(20, seed=1, faults=(fault,)))
    assert [attempt.failures for attempt in found] == [[]] * 20
