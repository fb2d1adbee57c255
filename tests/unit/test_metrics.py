"""Aggregation of logged values by name."""

from __future__ import annotations

import uuid

import pytest
import torch

from fairseq.logging import meters as meters_module
from fairseq.logging import metrics


@pytest.fixture(autouse=True)
def fresh():
    metrics.reset()
    yield
    metrics.reset()


def test_inner_values_reach_all_outer_aggregators():
    with metrics.aggregate() as outer:
        metrics.log_scalar("loss", 1)
        with metrics.aggregate() as inner:
            metrics.log_scalar("loss", 3)
    assert outer.get_smoothed_values()["loss"] == 2
    assert inner.get_smoothed_values()["loss"] == 3
    assert metrics.get_smoothed_value("default", "loss") == 2


def test_new_root_hides_the_outer_aggregators():
    with metrics.aggregate() as outer:
        metrics.log_scalar("loss", 1)
        with metrics.aggregate(new_root=True) as inner:
            metrics.log_scalar("loss", 5)
        metrics.log_scalar("loss", 3)
    assert outer.get_smoothed_values()["loss"] == 2
    assert inner.get_smoothed_values()["loss"] == 5


def test_roots_nest():
    with metrics.aggregate() as first:
        metrics.log_scalar("loss", 1)
        with metrics.aggregate(new_root=True) as second:
            metrics.log_scalar("loss", 2)
            with metrics.aggregate(new_root=True) as third:
                metrics.log_scalar("loss", 3)
                with metrics.aggregate() as fourth:
                    metrics.log_scalar("loss", 4)
            metrics.log_scalar("loss", 5)
        metrics.log_scalar("loss", 6)
    values = [m.get_smoothed_values()["loss"] for m in (first, second, third, fourth)]
    assert values == [3.5, 3.5, 3.5, 4]


def test_a_name_collects_over_blocks():
    name = str(uuid.uuid4())
    metrics.log_scalar("loss", 10)
    with metrics.aggregate(name):
        metrics.log_scalar("loss", 1)
    metrics.log_scalar("loss", 10)
    with metrics.aggregate(name):
        metrics.log_scalar("loss", 3)
    assert metrics.get_smoothed_values(name)["loss"] == 2


def test_the_same_name_may_nest_in_itself():
    name = str(uuid.uuid4())
    with metrics.aggregate(name):
        metrics.log_scalar("loss", 1)
        with metrics.aggregate() as inner:
            with metrics.aggregate(name):
                metrics.log_scalar("loss", 2)
            metrics.log_scalar("loss", 6)
    assert metrics.get_smoothed_values(name)["loss"] == 3
    assert inner.get_smoothed_values()["loss"] == 4


def test_decorator():
    @metrics.aggregate("decorated")
    def work():
        metrics.log_scalar("loss", 4)

    work()
    work()
    assert metrics.get_meter("decorated", "loss").count == 2


def test_an_exception_leaves_no_aggregator_active():
    with pytest.raises(ZeroDivisionError), metrics.aggregate("a"), metrics.aggregate("b", new_root=True):
        raise ZeroDivisionError
    assert metrics.get_active_aggregators() == [metrics.get_meters("default")]


def test_default_cannot_be_entered():
    with pytest.raises(ValueError, match="default"), metrics.aggregate("default"):
        pass


def test_speed_ignores_the_first_call(monkeypatch):
    now = [50.0]
    monkeypatch.setattr(meters_module.time, "perf_counter", lambda: now[0])
    metrics.log_speed("wps", 1000)
    assert metrics.get_meter("default", "wps").n == 0
    now[0] += 2
    metrics.log_speed("wps", 10)
    assert metrics.get_smoothed_value("default", "wps") == 5


def test_other_logs():
    metrics.log_scalar_sum("n", 2)
    metrics.log_scalar_sum("n", 3)
    metrics.log_derived("double", lambda m: 2 * m["n"].sum)
    metrics.log_concat_tensor("t", torch.ones(2))
    metrics.log_custom(lambda: meters_module.AverageMeter(round=1), "c", 1.26, priority=5)
    metrics.log_start_time("w", round=0)
    metrics.log_stop_time("w")
    metrics.log_stop_time("never started")
    values = metrics.get_smoothed_values("default")
    assert list(values) == ["c", "n", "t", "double", "w"]
    assert values["n"] == 5 and values["double"] == 10 and values["c"] == 1.3
    metrics.reset_meter("default", "n")
    metrics.reset_meters("no such aggregator")
    assert metrics.get_meter("default", "n").sum == 0
    metrics.reset_meters("default")
    assert metrics.get_meter("default", "t").tensor is None
    assert metrics.get_meter("no such aggregator", "n") is None


def test_restored_default_stays_attached_and_its_clock_runs(monkeypatch):
    now = [50.0]
    monkeypatch.setattr(meters_module.time, "perf_counter", lambda: now[0])
    with metrics.aggregate("train"):
        metrics.log_scalar("loss", torch.tensor(2.0), torch.tensor(3), round=5)
    state = metrics.state_dict()
    assert list(state) == ["default", "train"]
    state["default"].append((790, "wall", "StopwatchMeter", {"sum": 0, "n": 0, "round": 0}))

    metrics.reset()
    default = metrics.get_meters("default")
    metrics.log_start_time("wall", priority=790, round=0)
    now[0] += 7
    metrics.load_state_dict(state)
    assert metrics.get_meters("default") is default
    assert metrics.get_meter("default", "wall").elapsed_time == 7
    with metrics.aggregate("train"):
        metrics.log_scalar("loss", torch.tensor(4.0), torch.tensor(1), round=5)
    assert metrics.get_smoothed_value("default", "loss") == 2.5
    assert metrics.get_smoothed_value("train", "loss") == 2.5


def test_old_import_paths():
    import fairseq.meters
    import fairseq.metrics

    assert fairseq.metrics.log_scalar is metrics.log_scalar
    assert fairseq.metrics._aggregators is metrics._aggregators
    assert fairseq.meters.AverageMeter is meters_module.AverageMeter
