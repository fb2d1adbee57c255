"""Meters: running averages, sums, rates and stopwatches with the state layout that old checkpoints hold.

A value may be a Python number or a tensor with one element. Tensors are accumulated where they live and turned into
numbers only when a value is read (``smoothed_value``), so that logging a loss every update never waits for the device.

Each meter's ``state_dict`` has the keys, the order and the kinds of values (int, float, tensor) of the original, because
both programs read each other's checkpoints: see `MetersDict.state_dict`.
"""

from __future__ import annotations

import bisect
import copy
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from fairseq.tree import map_tensors


def safe_round(number: Any, ndigits: int | None) -> Any:
    """Round a number, or a tensor or array of one element, to ``ndigits`` decimals; anything else is returned as it is.

    Tensors are converted first: rounding in float32 would print other digits than rounding in float64.
    """
    if ndigits is None or number is None:
        return number
    if torch.is_tensor(number):
        return safe_round(number.item(), ndigits) if number.numel() == 1 else number
    if not isinstance(number, (int, float)) and hasattr(number, "item") and getattr(number, "ndim", 0) == 0:
        return safe_round(number.item(), ndigits)
    return round(number, ndigits) if hasattr(number, "__round__") else number


def _like(total: Any, addend: Any) -> Any:
    """``total`` on the device and in the type of ``addend`` when both are tensors (a restored meter starts on the CPU)."""
    return total.to(addend) if torch.is_tensor(total) and torch.is_tensor(addend) else total


def to_host(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """``tensors`` of one element each, which lie on a device, in their own types on the CPU: all in one transfer."""
    numbers = torch.stack([tensor.detach().reshape(()).double() for tensor in tensors]).cpu()
    return [number.to(x.dtype).reshape(x.shape) for number, x in zip(numbers, tensors, strict=True)]


class Meter:
    """What every meter does. A subclass with an average needs no ``smoothed_value`` of its own."""

    stored = True
    """Whether checkpoints keep it."""
    fields: tuple[str, ...] = ()
    """The attributes that checkpoints keep, in their order there."""
    round: int | None = None
    """Decimals that are printed; None: all."""

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.fields}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        for name in self.fields:
            # The oldest files have no `round`.
            setattr(self, name, state_dict.get(name) if name == "round" else state_dict[name])

    def reset(self) -> None:
        raise NotImplementedError

    @property
    def avg(self) -> Any:
        raise NotImplementedError

    @property
    def smoothed_value(self) -> Any:
        """The value to print, rounded."""
        return safe_round(self.avg, self.round)


class AverageMeter(Meter):
    """Weighted mean of what was logged since the last reset; with weight 0, the latest value."""

    fields = ("val", "sum", "count", "round")

    def __init__(self, round: int | None = None) -> None:
        self.round = round
        self.reset()

    def reset(self) -> None:
        self.val: Any = None  # the latest value
        self.sum: Any = 0
        self.count: Any = 0

    def update(self, val: Any, n: Any = 1) -> None:
        if val is None:
            return
        self.val = val
        if torch.is_tensor(n) and n.device.type != "cpu":
            # Asking `n > 0` would wait for the device. A weight of zero must add 0, even to a loss of 0 / 0 = NaN.
            self.sum = _like(self.sum, val) + torch.where(n > 0, val * n, 0)
            self.count = _like(self.count, n) + n
        elif n > 0:
            self.sum = _like(self.sum, val) + val * n
            self.count = _like(self.count, n) + n

    @property
    def avg(self) -> Any:
        return self.sum / self.count if self.count > 0 else self.val

    @property
    def is_empty(self) -> bool:
        """Whether this is an average over nothing, 0 / 0: all that was logged was NaN of weight 0."""
        return not self.count > 0 and self.val is not None and bool(self.val != self.val)


class SumMeter(Meter):
    """Sum of what was logged since the last reset."""

    fields = ("sum", "round")

    def __init__(self, round: int | None = None) -> None:
        self.round = round
        self.reset()

    def reset(self) -> None:
        self.sum: Any = 0

    def update(self, val: Any) -> None:
        if val is not None:
            self.sum = _like(self.sum, val) + val

    @property
    def avg(self) -> Any:
        return self.sum


class ConcatTensorMeter(Meter):
    """All logged tensors, joined along ``dim`` (predictions of an epoch, for metrics that need them all)."""

    fields = ("tensor",)

    def __init__(self, dim: int = 0) -> None:
        self.dim = dim
        self.reset()

    def reset(self) -> None:
        self.tensor: torch.Tensor | None = None

    def update(self, val: torch.Tensor) -> None:
        self.tensor = val if self.tensor is None else torch.cat([_like(self.tensor, val), val], dim=self.dim)

    @property
    def smoothed_value(self) -> Any:
        return [] if self.tensor is None else self.tensor


class TimeMeter(Meter):
    """Rate: what was logged per second since the last reset."""

    def __init__(self, init: float = 0, n: Any = 0, round: int | None = None) -> None:
        self.round = round
        self.reset(init, n)

    def reset(self, init: float = 0, n: Any = 0) -> None:
        """Start again, ``init`` seconds and ``n`` units ago."""
        self.init = init
        self.start = time.perf_counter()
        self.n: Any = n
        self.i = 0

    def update(self, val: Any = 1) -> None:
        self.n = _like(self.n, val) + val
        self.i += 1

    def state_dict(self) -> dict[str, Any]:
        return {"init": self.elapsed_time, "n": self.n, "round": self.round}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        if "start" in state_dict:  # before 2019-12 the clock of the dead process was stored: its count means nothing
            self.reset(init=state_dict["init"])
        else:
            self.reset(init=state_dict["init"], n=state_dict["n"])
        self.round = state_dict.get("round", None)

    @property
    def elapsed_time(self) -> float:
        """Seconds."""
        return self.init + (time.perf_counter() - self.start)

    @property
    def avg(self) -> Any:
        return self.n / self.elapsed_time


class StopwatchMeter(Meter):
    """Time between `start` and `stop`, summed; shows the running time as long as it was never stopped."""

    fields = ("sum", "n", "round")

    def __init__(self, round: int | None = None) -> None:
        self.round = round
        self.sum: Any = 0
        self.n: Any = 0
        self.start_time: float | None = None

    def start(self) -> None:
        self.start_time = time.perf_counter()

    def stop(self, n: Any = 1, prehook: Callable[[], Any] | None = None) -> None:
        """Add the time since `start`, of weight ``n``; ``prehook`` runs first (to wait for the device)."""
        if self.start_time is None:
            return
        if prehook is not None:
            prehook()
        self.sum = self.sum + (time.perf_counter() - self.start_time)
        self.n = _like(self.n, n) + n

    def reset(self) -> None:
        self.sum = 0
        self.n = 0
        self.start()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.start_time = None

    @property
    def avg(self) -> Any:
        return self.sum / self.n if self.n > 0 else self.sum

    @property
    def elapsed_time(self) -> float:
        """Seconds since `start`, 0 if it was never called."""
        return 0.0 if self.start_time is None else time.perf_counter() - self.start_time

    @property
    def smoothed_value(self) -> Any:
        return safe_round(self.avg if self.sum > 0 else self.elapsed_time, self.round)


class _DerivedMeter(Meter):
    """A value computed from the other meters of its dictionary when it is read; never stored."""

    stored = False

    def __init__(self, fn: Callable[[MetersDict], Any]) -> None:
        self.fn = fn

    def reset(self) -> None:
        pass


class CollectingMeter(Meter):
    """Everything that was logged in a pass, for scores that are not averages over batches; never stored.

    ``scores`` gets the list of all values, on the CPU, and returns several results by name.
    """

    stored = False

    def __init__(self, scores: Callable[[list[Any]], Mapping[str, Any]]) -> None:
        self.scores = scores
        self.reset()

    def reset(self) -> None:
        self.values: list[Any] = []

    def update(self, value: Any) -> None:
        self.values.append(value)

    def results(self) -> dict[str, Any]:
        return dict(self.scores(map_tensors(torch.Tensor.cpu, self.values))) if self.values else {}


STORED_CLASSES: dict[str, type[Meter]] = {
    c.__name__: c for c in (AverageMeter, SumMeter, ConcatTensorMeter, TimeMeter, StopwatchMeter)
}


class MetersDict(OrderedDict):
    """Meters by name, ordered by priority, then by the time they were added.

    ``meters[key] = (priority, meter)`` adds one; a key cannot be replaced.
    """

    collects = False
    """Whether a `CollectingMeter` may be added: this dictionary sees one whole pass over a dataset."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.priorities: list[tuple[int, int, str]] = []
        super().__init__(*args, **kwargs)

    def __setitem__(self, key: str, value: tuple[int, Meter]) -> None:
        if key in self:
            raise KeyError(f"meter {key!r} exists already; reset it or use another name")
        priority, meter = value
        bisect.insort(self.priorities, (priority, len(self.priorities), key))
        super().__setitem__(key, meter)
        for _, _, name in self.priorities:
            self.move_to_end(name)

    def add_meter(self, key: str, meter: Meter, priority: int) -> None:
        self[key] = (priority, meter)  # type: ignore[assignment]

    def state_dict(self) -> list[tuple[int, str, str, dict[str, Any]]]:
        """``[(priority, key, class name, meter state), ...]`` in printing order, of those that are stored."""
        return [
            (priority, key, type(self[key]).__name__, self[key].state_dict())
            for priority, _, key in self.priorities
            if getattr(self[key], "stored", True)
        ]

    def load_state_dict(self, state_dict: list[tuple[int, str, str, dict[str, Any]]]) -> None:
        """Replace the contents. A meter class that does not exist here (a plugin's) is skipped: it starts fresh."""
        self.clear()
        self.priorities.clear()
        for priority, key, class_name, state in state_dict:
            if class_name not in STORED_CLASSES:
                continue
            meter = STORED_CLASSES[class_name]()
            meter.load_state_dict(state)
            self.add_meter(key, meter, priority)

    def get_smoothed_value(self, key: str) -> Any:
        meter = self[key]
        return meter.fn(self) if isinstance(meter, _DerivedMeter) else meter.smoothed_value

    def get_smoothed_values(self) -> OrderedDict[str, Any]:
        """All values to print; names that begin with an underscore are private. Waits for a device once.

        Averages over nothing are left out, and what is derived from them.
        """
        values: OrderedDict[str, Any] = OrderedDict()
        read = self._read()
        empty = {key for key, meter in read.items() if isinstance(meter, AverageMeter) and meter.is_empty}
        for key, meter in read.items():
            if isinstance(meter, CollectingMeter):
                values.update(meter.results())
            elif not key.startswith("_") and key not in empty:
                value = read.get_smoothed_value(key)
                if not (empty and isinstance(meter, _DerivedMeter) and value != value):
                    values[key] = value
        return values

    def _read(self) -> MetersDict:
        """These meters; where numbers of theirs lie on a device, copies that have them on the CPU."""
        found = [
            (key, name, value)
            for key, meter in self.items()
            for name, value in getattr(meter, "__dict__", {}).items()
            if torch.is_tensor(value) and value.numel() == 1 and value.device.type != "cpu"
        ]
        if not found:
            return self
        read = MetersDict()
        for priority, _, key in self.priorities:
            read.add_meter(key, copy.copy(self[key]), priority)
        for (key, name, _), number in zip(found, to_host([value for *_, value in found]), strict=True):
            setattr(read[key], name, number)
        return read

    def reset(self) -> None:
        """Reset every meter, keep them all."""
        for meter in self.values():
            meter.reset()


class Statistics(Mapping[str, Any]):
    """The values of ``meters`` and ``more``, read when somebody looks at them: that waits for the device."""

    def __init__(self, meters: MetersDict, more: Mapping[str, Any]) -> None:
        self._meters, self._more = meters, more
        self._values: dict[str, Any] | None = None

    def _all(self) -> dict[str, Any]:
        if self._values is None:
            self._values = {**self._meters.get_smoothed_values(), **self._more}
        return self._values

    def __getitem__(self, name: str) -> Any:
        return self._all()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())
