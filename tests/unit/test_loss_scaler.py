"""The float16 loss scale: growth, shrinking, tolerance, floor, giving up, and continuing from a saved state."""

from __future__ import annotations

import pytest
import torch

from fairseq.optim.fp16_optimizer import DynamicLossScaler

INF, NAN = float("inf"), float("nan")


def overflow(scaler: DynamicLossScaler, norm: float = INF) -> None:
    with pytest.raises(OverflowError, match="loss scale is now"):
        scaler.check_overflow(torch.tensor(norm))


def good(scaler: DynamicLossScaler, times: int = 1) -> None:
    for _ in range(times):
        scaler.check_overflow(torch.tensor(1.0))
        scaler.update()


def test_scale_doubles_after_each_window() -> None:
    scaler = DynamicLossScaler(init_scale=4.0, scale_window=3)
    trace = []
    for _ in range(7):
        good(scaler)
        trace.append(scaler.loss_scale)
    # The first window is one shorter: the overflow before the first update counts as update -1.
    assert trace == [4.0, 4.0, 8.0, 8.0, 8.0, 16.0, 16.0]


def test_window_of_one_doubles_every_time() -> None:
    scaler = DynamicLossScaler(init_scale=1.0, scale_window=1)
    good(scaler, 3)
    assert scaler.loss_scale == 8.0
    assert scaler.scale(torch.tensor(2.0)).item() == 16.0


@pytest.mark.parametrize("norm", [INF, NAN])
def test_overflow_halves_and_restarts_the_window(norm: float) -> None:
    scaler = DynamicLossScaler(init_scale=8.0, scale_window=3)
    good(scaler)
    overflow(scaler, norm)
    assert scaler.loss_scale == 4.0
    trace = []
    for _ in range(4):
        good(scaler)
        trace.append(scaler.loss_scale)
    assert trace == [4.0, 4.0, 8.0, 8.0]


def test_tolerance_waits_for_a_share_of_overflows() -> None:
    scaler = DynamicLossScaler(init_scale=8.0, scale_window=100, tolerance=0.5)
    good(scaler, 3)
    overflow(scaler)
    assert scaler.loss_scale == 8.0  # 1 of 4
    overflow(scaler)
    assert scaler.loss_scale == 8.0  # 2 of 5
    overflow(scaler)
    assert scaler.loss_scale == 4.0  # 3 of 6


def test_threshold_is_a_floor() -> None:
    scaler = DynamicLossScaler(init_scale=2.0, threshold=1.0)
    for _ in range(3):
        overflow(scaler)
    assert scaler.loss_scale == 1.0


def test_too_small_a_scale_stops_training_and_keeps_the_scale() -> None:
    scaler = DynamicLossScaler(init_scale=1.0, min_loss_scale=0.25)
    overflow(scaler)
    with pytest.raises(FloatingPointError, match="exploding"):
        scaler.check_overflow(NAN)
    assert scaler.loss_scale == 0.5


def test_continuing_from_a_saved_state() -> None:
    through = DynamicLossScaler(init_scale=4.0, scale_window=4)
    good(through, 2)
    overflow(through)
    good(through, 2)
    resumed = DynamicLossScaler(init_scale=4.0, scale_window=4)
    resumed.loss_scale = through.loss_scale
    resumed.load_state_dict(through.state_dict())
    for _ in range(6):
        good(through)
        good(resumed)
        assert resumed.loss_scale == through.loss_scale
