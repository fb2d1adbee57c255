"""Options, seeds and clean-up for all tests. ``pytest`` alone is quick and runs on the CPU without a network."""

from __future__ import annotations

import logging
import random
import sys
from collections.abc import Iterator

import numpy as np
import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", help="device of the tests that take one (default: %(default)s)")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--device") == "cpu":
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs --device cuda"))
    if "network" not in (config.option.markexpr or ""):
        online = [item for item in items if item.get_closest_marker("network")]
        config.hook.pytest_deselected(items=online)
        items[:] = [item for item in items if item not in online]


@pytest.fixture
def device(request: pytest.FixtureRequest) -> str:
    return request.config.getoption("--device")


@pytest.fixture(autouse=True)
def _same_start() -> Iterator[None]:
    """Every test starts from the same seeds and leaves torch's global settings as they were."""
    random.seed(1)
    np.random.seed(1)
    torch = sys.modules.get("torch")  # tests that never import torch stay quick
    if torch is None:
        yield
        return
    torch.manual_seed(1)
    dtype, deterministic = torch.get_default_dtype(), torch.are_deterministic_algorithms_enabled()
    yield
    torch.set_default_dtype(dtype)
    if torch.are_deterministic_algorithms_enabled() != deterministic:  # even setting what is set costs 5 seconds
        torch.use_deterministic_algorithms(deterministic)


@pytest.fixture
def same_log() -> Iterator[None]:
    """Put the log handlers back, which hydra replaces."""
    handlers, level = logging.root.handlers[:], logging.root.level
    yield
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)
