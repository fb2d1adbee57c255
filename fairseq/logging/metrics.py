"""Aggregation of logged values by name: whoever logs need not know who reads.

``with aggregate("train"): ... log_scalar("loss", x)`` adds ``x`` to the meters of every active aggregator: ``train``, those
around it, and ``default``, which is always active except inside ``aggregate(new_root=True)``.

The public functions are the old ones. Deliberate deviations: an exception inside ``aggregate`` no longer leaves it active,
and restoring a state fills the existing aggregators instead of replacing them: in the original, the restored ``default``
was detached from the active one and its wall clock stood still.
"""

from __future__ import annotations

import contextlib
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

from fairseq.logging.meters import (
    AverageMeter,
    CollectingMeter,
    ConcatTensorMeter,
    Meter,
    MetersDict,
    StopwatchMeter,
    SumMeter,
    TimeMeter,
    _DerivedMeter,
)

# Every aggregator of the process by name, and those that are logged to now.
_aggregators: OrderedDict[str, MetersDict] = OrderedDict()
_active_aggregators: OrderedDict[str, MetersDict] = OrderedDict()


def reset() -> None:
    """Forget everything; only a fresh ``default`` aggregator remains."""
    _aggregators.clear()
    _active_aggregators.clear()
    _aggregators["default"] = _active_aggregators["default"] = MetersDict()


reset()


@contextlib.contextmanager
def aggregate(name: str | None = None, new_root: bool = False, collect: bool = False) -> Iterator[MetersDict]:
    """Collect what is logged inside; also usable as a decorator.

    Entering the same name again, nested or later, goes on with the same meters; without a name they are temporary.
    ``new_root`` hides the block from all the aggregators around it, ``default`` included. ``collect`` says that the block is
    one whole pass over a dataset, so that `log_collected` keeps its values.
    """
    if name == "default":
        raise ValueError("aggregator 'default' is always active; give the block another name")
    if name is None:
        name = str(uuid.uuid4())  # unknown to `_aggregators`: gone with the block
        meters = MetersDict()
    else:
        meters = _aggregators.setdefault(name, MetersDict())

    meters.collects = meters.collects or collect
    outer = _active_aggregators.copy()
    if new_root:
        _active_aggregators.clear()
    _active_aggregators[name] = meters
    try:
        yield meters
    finally:
        _active_aggregators.clear()
        _active_aggregators.update(outer)


def get_active_aggregators() -> list[MetersDict]:
    return list(_active_aggregators.values())


def _meters(key: str, new_meter: Callable[[], Meter], priority: int) -> Iterator[tuple[Any, bool]]:
    """The meter ``key`` of every active aggregator, made where missing, and whether it was made now."""
    for aggregator in get_active_aggregators():
        missing = key not in aggregator
        if missing:
            aggregator.add_meter(key, new_meter(), priority)
        yield aggregator[key], missing


def log_scalar(key: str, value: Any, weight: Any = 1, priority: int = 10, round: int | None = None) -> None:
    """Log a value into a weighted average; with ``weight`` 0 the latest value is shown. ``round``: decimals printed."""
    for meter, _ in _meters(key, lambda: AverageMeter(round=round), priority):
        meter.update(value, weight)


def log_scalar_sum(key: str, value: Any, priority: int = 10, round: int | None = None) -> None:
    """Log a value into a sum."""
    for meter, _ in _meters(key, lambda: SumMeter(round=round), priority):
        meter.update(value)


def log_concat_tensor(key: str, value: Any, priority: int = 10, dim: int = 0) -> None:
    """Append a tensor along ``dim``."""
    for meter, _ in _meters(key, lambda: ConcatTensorMeter(dim=dim), priority):
        meter.update(value)


def log_collected(key: str, value: Any, scores: Callable[[list[Any]], Any], priority: int = 20) -> None:
    """Keep ``value`` until the end of the pass, when ``scores`` turns the list of all values into results by name.

    For what is not an average over batches: F1, correlations. Only an ``aggregate(collect=True)`` keeps anything; in
    training, and in the aggregators that live on after a validation, nothing is collected. ``key`` is not printed.
    """
    for aggregator in get_active_aggregators():
        if aggregator.collects:
            if key not in aggregator:
                aggregator.add_meter(key, CollectingMeter(scores), priority)
            aggregator[key].update(value)


def log_derived(key: str, fn: Callable[[MetersDict], Any], priority: int = 20) -> None:
    """Show ``fn(meters)``, computed from the other meters when read."""
    for _ in _meters(key, lambda: _DerivedMeter(fn), priority):
        pass


def log_speed(key: str, value: Any, priority: int = 30, round: int | None = None) -> None:
    """Log units for a rate per second. The first call only starts the clock: its units were done before."""
    for meter, made in _meters(key, lambda: TimeMeter(round=round), priority):
        if not made:
            meter.update(value)


def log_start_time(key: str, priority: int = 40, round: int | None = None) -> None:
    """Start the stopwatch ``key``."""
    for meter, _ in _meters(key, lambda: StopwatchMeter(round=round), priority):
        meter.start()


def log_stop_time(key: str, weight: Any = 0.0, prehook: Callable[[], Any] | None = None) -> None:
    """Stop the stopwatch ``key``; with ``weight`` 0 the total is shown, otherwise the average per unit of weight."""
    for aggregator in get_active_aggregators():
        if key in aggregator:
            aggregator[key].stop(weight, prehook)


def log_custom(new_meter_fn: Callable[[], Meter], key: str, *args: Any, priority: int = 50, **kwargs: Any) -> None:
    """Log into a meter of the caller's own class; ``args`` go to its ``update``."""
    for meter, _ in _meters(key, new_meter_fn, priority):
        meter.update(*args, **kwargs)


def reset_meter(name: str, key: str) -> None:
    if (meter := get_meter(name, key)) is not None:
        meter.reset()


def reset_meters(name: str) -> None:
    if (meters := get_meters(name)) is not None:
        meters.reset()


def get_meter(name: str, key: str) -> Any:
    """The meter ``key`` of aggregator ``name``, or None."""
    meters = get_meters(name)
    return None if meters is None else meters.get(key)


def get_meters(name: str) -> MetersDict | None:
    return _aggregators.get(name)


def get_smoothed_value(name: str, key: str) -> Any:
    return _aggregators[name].get_smoothed_value(key)


def get_smoothed_values(name: str) -> OrderedDict[str, Any]:
    return _aggregators[name].get_smoothed_values()


def state_dict() -> OrderedDict[str, list]:
    """Aggregator name -> list of (priority, key, class name, meter state)."""
    return OrderedDict((name, aggregator.state_dict()) for name, aggregator in _aggregators.items())


def load_state_dict(state_dict: dict[str, list]) -> None:
    """Restore `state_dict`. Aggregators keep their identity, and a stopwatch that is running keeps running."""
    for name, meters_state in state_dict.items():
        aggregator = _aggregators.setdefault(name, MetersDict())
        before = dict(aggregator)
        aggregator.load_state_dict(meters_state)
        for key, meter in aggregator.items():
            if isinstance(meter, StopwatchMeter) and isinstance(before.get(key), StopwatchMeter):
                meter.start_time = before[key].start_time
