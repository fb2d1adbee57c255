"""Meters: values, rounding, and the state layout that old checkpoints hold."""

from __future__ import annotations

import math

import pytest
import torch

from fairseq.logging import meters as meters_module
from fairseq.logging.meters import (
    AverageMeter,
    ConcatTensorMeter,
    MetersDict,
    StopwatchMeter,
    SumMeter,
    TimeMeter,
    safe_round,
)


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test moves by hand."""

    class Clock:
        now = 100.0

    monkeypatch.setattr(meters_module.time, "perf_counter", lambda: Clock.now)
    return Clock


def test_average_is_weighted_and_rounded():
    meter = AverageMeter(round=3)
    meter.update(1.0, 1)
    meter.update(2.0, 2)
    assert meter.val == 2.0
    assert meter.avg == pytest.approx(5 / 3)
    assert meter.smoothed_value == 1.667


def test_average_of_weight_zero_shows_the_latest():
    meter = AverageMeter()
    meter.update(0.1, 0)
    meter.update(0.2, 0)
    assert meter.smoothed_value == 0.2
    assert meter.state_dict() == {"val": 0.2, "sum": 0, "count": 0, "round": None}
    meter.update(None)
    assert meter.smoothed_value == 0.2


def test_empty_average_is_none():
    assert AverageMeter(round=2).smoothed_value is None


def test_average_of_tensors_is_kept_as_tensors():
    meter = AverageMeter(round=5)
    meter.update(torch.tensor(10.1234567), torch.tensor(3))
    meter.update(torch.tensor(9.0), torch.tensor(1))
    state = meter.state_dict()
    assert list(state) == ["val", "sum", "count", "round"]
    assert state["sum"].dtype == torch.float32 and state["count"].dtype == torch.int64
    assert meter.smoothed_value == round(((torch.tensor(10.1234567) * 3 + 9) / 4).item(), 5)


@pytest.mark.parametrize("weight", [0, torch.tensor(0)])
def test_nan_of_weight_zero_does_not_spoil_the_average(weight):
    meter = AverageMeter()
    meter.update(torch.tensor(2.0), torch.tensor(4))
    meter.update(torch.tensor(math.nan), weight)
    assert meter.avg == 2.0


def test_restored_average_goes_on_exactly():
    meter, other = AverageMeter(round=5), AverageMeter()
    for i in range(3):
        meter.update(torch.tensor(i / 7), torch.tensor(i + 1))
    other.load_state_dict(meter.state_dict())
    for m in (meter, other):
        m.update(torch.tensor(0.3), torch.tensor(5))
    assert other.round == 5
    assert torch.equal(meter.avg, other.avg)


def test_sum_and_concatenation():
    total = SumMeter(round=1)
    total.update(1.25)
    total.update(None)
    total.update(torch.tensor(2.0))
    assert total.smoothed_value == 3.2
    assert list(total.state_dict()) == ["sum", "round"]

    joined = ConcatTensorMeter()
    assert joined.smoothed_value == []
    joined.update(torch.ones(2, 3))
    joined.update(torch.zeros(1, 3))
    assert joined.smoothed_value.shape == (3, 3)
    again = ConcatTensorMeter()
    again.load_state_dict(joined.state_dict())
    assert again.smoothed_value.shape == (3, 3)


def test_rate(clock):
    meter = TimeMeter(round=1)
    clock.now += 2
    meter.update(5)
    assert meter.smoothed_value == 2.5
    assert meter.state_dict() == {"init": 2.0, "n": 5, "round": 1}

    clock.now = 7.0  # another process has another clock
    restored = TimeMeter()
    restored.load_state_dict({"init": 2.0, "n": 5, "round": 1})
    clock.now += 3
    restored.update(5)
    assert restored.smoothed_value == 2.0


def test_rate_of_an_old_file_forgets_its_count(clock):
    meter = TimeMeter()
    meter.load_state_dict({"init": 4.0, "start": 12345.0, "n": 100})
    assert (meter.n, meter.elapsed_time, meter.round) == (0, 4.0, None)


def test_stopwatch(clock):
    watch = StopwatchMeter(round=0)
    watch.stop()  # never started: nothing
    assert watch.sum == 0 and watch.elapsed_time == 0
    watch.start()
    clock.now += 3
    assert watch.smoothed_value == 3  # running, never stopped
    called = []
    watch.stop(0.0, prehook=lambda: called.append(True))
    watch.start()
    clock.now += 4
    watch.stop(0.0)
    assert called == [True]
    assert watch.smoothed_value == 7  # weight 0: the total
    assert watch.state_dict() == {"sum": 7.0, "n": 0.0, "round": 0}
    assert isinstance(watch.state_dict()["n"], float)
    watch.load_state_dict({"sum": 8.0, "n": 2, "round": 1})
    assert watch.smoothed_value == 4.0 and watch.start_time is None
    watch.reset()
    assert watch.sum == 0 and watch.start_time is not None


def test_order_is_priority_then_insertion():
    meters = MetersDict()
    meters.add_meter("b", AverageMeter(), 20)
    meters.add_meter("z", AverageMeter(), 10)
    meters.add_meter("a", AverageMeter(), 20)
    assert list(meters) == ["z", "b", "a"]
    with pytest.raises(KeyError, match="'a' exists already"):
        meters.add_meter("a", AverageMeter(), 1)


def test_derived_meters_are_computed_and_not_stored():
    meters = MetersDict()
    meters.add_meter("loss", AverageMeter(round=1), 10)
    meters.add_meter("_hidden", AverageMeter(), 15)
    meters.add_meter("ppl", meters_module._DerivedMeter(lambda m: 2 ** m["loss"].avg), 20)
    meters["loss"].update(3.0)
    assert meters.get_smoothed_values() == {"loss": 3.0, "ppl": 8.0}
    assert [entry[1:3] for entry in meters.state_dict()] == [("loss", "AverageMeter"), ("_hidden", "AverageMeter")]
    meters.reset()
    assert meters["loss"].count == 0 and "ppl" in meters


def test_state_round_trip_in_the_original_layout():
    state = [
        (10, "loss", "AverageMeter", {"val": None, "sum": 0, "count": 0, "round": 5}),
        (90, "wps", "TimeMeter", {"init": 0.5, "n": 3, "round": 1}),
        (95, "mine", "MeterOfAPlugin", {"x": 1}),
        (100, "total", "SumMeter", {"sum": 2, "round": None}),
        (800, "train_wall", "StopwatchMeter", {"sum": 0.25, "n": 0.0, "round": 0}),
    ]
    meters = MetersDict()
    meters.load_state_dict(state)
    out = meters.state_dict()
    assert [e[:3] for e in out] == [e[:3] for e in state if e[1] != "mine"]
    assert all(isinstance(e, tuple) for e in out)
    assert out[0] == state[0] and out[3] == state[4]


@pytest.mark.parametrize(
    ("number", "expected"),
    [(1.23456, 1.23), (7, 7), (None, None), (torch.tensor(1.23456), 1.23), (torch.tensor([1.23456]), 1.23), ("x", "x")],
)
def test_safe_round(number, expected):
    assert safe_round(number, 2) == expected


def test_safe_round_of_numpy():
    np = pytest.importorskip("numpy")
    assert safe_round(np.float32(1.23456), 2) == 1.23
    assert safe_round(np.array(1.23456), 2) == 1.23
