"""What a training says about its end."""

from __future__ import annotations

import pytest

from fairseq.dataclass.build import build_config
from fairseq.training.run import stop_rule


@pytest.mark.parametrize(
    ("settings", "patience", "rule"),
    [
        ({"max_update": 500, "max_epoch": 3}, 5, "training stops after 500 updates or after 3 epochs or after 5 valid"),
        ({}, -1, "no limit on updates or epochs (max_update, max_epoch): stops by hand only"),
        ({"stop_time_hours": 1.5}, -1, "no limit on updates or epochs (max_update, max_epoch): stops after 1.5 hours"),
        ({"max_epoch": 1, "stop_min_lr": 1e-6}, -1, "training stops after 1 epochs or at a learning rate of 1e-06"),
    ],
)
def test_rules(settings: dict[str, float], patience: int, rule: str) -> None:
    cfg = build_config({"optimization": settings, "checkpoint": {"patience": patience}})
    assert stop_rule(cfg).startswith(rule)  # type: ignore[arg-type]
