"""What the processes of a run do together: gradients and statistics are added up, decisions are made by all alike.

`Alone` is for a single process, which has nobody to ask. `Together` has two ways to add up gradients
(``ddp_backend``): torch's DistributedDataParallel, in its composable form, which leaves the model's class and names as
they are and communicates while the backward pass goes on; and one after it (``legacy_ddp``), where a parameter may be
without gradient and a process may run out of memory. `fairseq.training.sharding` has the third, where each process has a
part of the parameters.

Whatever a process decides by a number of its own (its clock, a signal that it got, its memory) travels with the
statistics of an update, and is read with the one number that every update waits for.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from fairseq.checkpoint.shard_reader import WHOLE, ShardReader
from fairseq.checkpoint.sharded import Writers
from fairseq.distributed import group as distributed
from fairseq.distributed import watch
from fairseq.errors import CheckpointError, ConfigError, TrainingError
from fairseq.logging.setup import TRAIN_LOGGER

logger = logging.getLogger(TRAIN_LOGGER)

Wishes = Callable[[], Mapping[str, bool]]
"""What this process would do now, by name: ``time_up`` (stop), for example."""


@dataclass
class Accumulated:
    """What the micro-batches of one update left behind."""

    loss: Tensor | float = 0.0
    """Sum of the losses (nats), detached."""
    sample_size: Tensor | float = 0.0
    """What the loss is divided by (masked tokens)."""
    logging_outputs: list[dict[str, Any]] = field(default_factory=list)
    dummy: dict[str, Any] | None = None
    """The logging output of a batch without weight, which shows the keys."""
    out_of_memory: bool = False

    def divisor(self) -> Tensor | float:
        """``sample_size``, but 1 for an update without targets, which has no loss and no gradient to divide."""
        if isinstance(self.sample_size, Tensor):
            return torch.where(self.sample_size == 0, 1, self.sample_size)
        return self.sample_size or 1.0


class OutOfMemoryError(Exception):
    """A process ran out of memory in this update, which all of them skip."""


class Alone:
    """A single process."""

    averaged = 1.0
    """By how much gradients are too small: they may be means over processes."""
    shares_passes = False
    """Whether all processes have to go through the model together, and to collect its state together."""
    writers: Writers | None = None
    """All of them, where each writes its part of a checkpoint."""
    shards: ShardReader = WHOLE
    """How this process reads checkpoints that were written so."""

    def __init__(self, wishes: Wishes) -> None:
        self._wishes = wishes

    def goes_on_without(self, shortage: str) -> bool:
        """The update is given up, because of too little memory; whether there are others to be told.

        Raises TrainingError where they cannot be told any more.
        """
        logger.warning("this update is skipped: %s", shortage)
        torch.cuda.empty_cache()
        return False

    def rows(self, named: list[tuple[str, Parameter]]) -> list[tuple[str, Parameter]]:
        """What this process updates of some ``named`` parameters."""
        return named

    def forget_gradients(self) -> None:
        """Before an update: forget gradients that the optimizer does not know of."""

    def each(self, samples: Iterable[Any], update: int) -> Iterable[Any]:
        """``samples``, the micro-batches of ``update``, to be gone through."""
        return samples

    def add_up(self, total: Accumulated) -> Accumulated:
        """``total`` of all processes, after the last micro-batch; gradients are then those of all, too."""
        return total

    def read(self, number: Tensor, total: Accumulated) -> Tensor:
        """``number``, and what was agreed on. Raises OutOfMemoryError where a process has run out of it."""
        return number

    def collect(self, total: Accumulated) -> Accumulated:
        """``total`` of all processes, for an evaluated batch."""
        return total

    def agreed(self, wish: str) -> bool:
        """Whether one of the processes wishes it, as of the last update or evaluated batch."""
        return self._wishes()[wish]

    def check_start(self, model: nn.Module, position: tuple[int, ...]) -> None:
        """Raise CheckpointError unless all start from the same weights and ``position`` (updates, place in the data)."""

    def whole(self, state: Any) -> Any:
        """The nested ``state`` of all processes, in full for the first one."""
        return state

    def placed(self, state: Any, like: Any) -> Any:
        """What each process has, of that which `whole` gave; ``like`` is what it has now."""
        return state

    def first_found(self, found: str | None) -> str | None:
        """What one of them has ``found``, if they have to look together."""
        return found


class Together(Alone):
    """One of several processes.

    Args:
        section: ``distributed_training``.
        summable: whether the logging outputs of ``criterion`` can be added up key by key.
    """

    def __init__(self, model: nn.Module, criterion: nn.Module, section: Any, summable: bool, wishes: Wishes) -> None:
        super().__init__(wishes)
        self._size = distributed.get_data_parallel_world_size()
        self.averaged = float(self._size)
        self._summable, self._bucket = summable, section.bucket_cap_mb << 20
        self._device = next(model.parameters()).device
        self._replica: Any = None
        self._update = 0
        self._own = [p for p in criterion.parameters() if p.requires_grad]
        self._keys: list[str] = []
        self.tolerates_gaps = False  # whether an update can be given up in the middle of its micro-batches
        self._agreed: dict[str, bool] = dict.fromkeys(wishes(), False)
        self._share(model, section)
        hand_out(criterion.parameters())

    def _share(self, model: nn.Module, section: Any) -> None:
        """Start from the ``model`` of the first process, and see to its gradients."""
        if section.ddp_backend in ("c10d", "pytorch_ddp"):
            self._replica = replicate(model, section)
        else:
            self._own += [p for p in model.parameters() if p.requires_grad]
            hand_out((*model.parameters(), *model.buffers()))

    def goes_on_without(self, shortage: str) -> bool:
        if not self.tolerates_gaps:
            raise TrainingError(f"{shortage}, or skip such updates with --ddp-backend legacy_ddp")
        super().goes_on_without(shortage)
        return True

    def each(self, samples: Iterable[Any], update: int) -> Iterator[Any]:
        """As ever; gradients are communicated with the last one only. A process without any has an empty one."""
        watch.mark(update)
        self._update = update
        batches = list(samples) or [None]
        for position, sample in enumerate(batches, start=1):
            if self._replica is not None:
                self._replica.set_requires_gradient_sync(position == len(batches))
            yield sample

    def add_up(self, total: Accumulated) -> Accumulated:
        average_gradients(self._own, self._size, self._bucket)
        outputs = [*total.logging_outputs, *([_zeros(total.dummy)] if total.dummy is not None else [])]
        if self._summable and not total.out_of_memory:
            self._keys = sorted({key for output in outputs for key in output})
        wishes = self._wishes()
        numbers = [total.loss, total.sample_size, float(total.out_of_memory), *map(float, wishes.values())]
        numbers += [sum(output.get(key, 0) for output in outputs) for key in self._keys]
        self._sums = distributed.add_up(stacked(numbers, self._device))
        if not self._summable:
            total.logging_outputs = self._gathered(total.logging_outputs)
        self.tolerates_gaps = self._replica is None and not self.shares_passes  # from now on the keys are known
        return Accumulated(self._sums[0], self._sums[1], total.logging_outputs)

    def read(self, number: Tensor, total: Accumulated) -> Tensor:
        *sums, value = torch.cat([self._sums, number.detach().to(self._sums).view(1)]).tolist()
        out_of_memory, counts = sums[2], sums[3:]
        self._agreed = {name: count > 0 for name, count in zip(self._agreed, counts, strict=False)}
        if self._summable:
            total.logging_outputs = [dict(zip(self._keys, counts[len(self._agreed) :], strict=True))]
        total.sample_size = sums[1]
        if out_of_memory:
            raise OutOfMemoryError
        return torch.tensor(value, dtype=torch.float64)

    def collect(self, total: Accumulated) -> Accumulated:
        watch.mark(self._update)
        wishes = dict(self._wishes())
        found = distributed.gather((total.sample_size, [_told(output) for output in total.logging_outputs], wishes))
        self._agreed = {name: any(wish[name] for _, _, wish in found) for name in self._agreed}
        outputs = [output for _, outputs, _ in found for output in outputs]
        return Accumulated(0.0, sum(size for size, _, _ in found), _with_functions(outputs, total.logging_outputs))

    def _gathered(self, outputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [output for part in distributed.gather([_told(output) for output in outputs]) for output in part]

    def agreed(self, wish: str) -> bool:
        return self._agreed[wish]

    def check_start(self, model: nn.Module, position: tuple[int, ...]) -> None:
        found = distributed.gather((*position, self._weights(model)))
        for rank, place in enumerate(found):
            if place != found[0]:
                raise CheckpointError(
                    f"process {rank} starts from {place[0]} updates, the first one from {found[0][0]}, or from other "
                    "weights: all processes must see the same files in save_dir and --restore-file"
                )

    def _weights(self, model: nn.Module) -> str:
        """What all must have in common of the weights of ``model``."""
        weights = float(torch.stack([p.detach().double().sum() for p in model.parameters()]).sum())
        return f"{weights:.9g}"  # machines may round otherwise


def hand_out(tensors: Iterable[Tensor]) -> None:
    """Give all processes the ``tensors`` of the first one."""
    with torch.no_grad():
        for tensor in tensors:
            torch.distributed.broadcast(tensor, 0)


def replicate(model: nn.Module, section: Any) -> Any:
    """Let backward passes of ``model`` average its gradients over the processes; returns it."""
    from torch.distributed._composable.replicate import replicate as composable

    composable(
        model,
        bucket_cap_mb=section.bucket_cap_mb,
        find_unused_parameters=section.find_unused_parameters,
        gradient_as_bucket_view=section.gradient_as_bucket_view,
    )
    if section.ddp_comm_hook == "bf16" and next(model.parameters()).device.type != "cuda":
        raise ConfigError("--ddp-comm-hook bf16 needs NCCL and CUDA; on the CPU there is fp16")
    if section.ddp_comm_hook != "none":
        from torch.distributed.algorithms.ddp_comm_hooks import default_hooks

        hooks = {"fp16": default_hooks.fp16_compress_hook, "bf16": default_hooks.bf16_compress_hook}
        model.register_comm_hook(None, hooks[section.ddp_comm_hook])  # type: ignore[operator]
    return model


def average_gradients(parameters: Sequence[nn.Parameter], size: int, bucket: int) -> None:
    """Average the gradients over ``size`` processes, ``bucket`` bytes at a time.

    Where no process has a gradient there is none afterwards; where one has, it counts as zeros for the others.
    """
    if not parameters:
        return
    present = stacked([float(p.grad is not None) for p in parameters], parameters[0].device)
    used = [p for p, count in zip(parameters, distributed.add_up(present).tolist(), strict=True) if count > 0]
    for parameter in used:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    for part in _buckets([p.grad for p in used if p.grad is not None], bucket):
        flat = distributed.add_up(torch.cat([grad.reshape(-1) for grad in part])).div_(size)
        for grad, mean in zip(part, flat.split([grad.numel() for grad in part]), strict=True):
            grad.copy_(mean.view_as(grad))


def _buckets(grads: Iterable[Tensor], most: int) -> Iterator[list[Tensor]]:
    """Neighbours of one type with at most ``most`` bytes together, or one that has more."""
    part: list[Tensor] = []
    held = 0
    for grad in grads:
        size = grad.numel() * grad.element_size()
        if part and (held + size > most or grad.dtype != part[0].dtype):
            yield part
            part, held = [], 0
        part.append(grad)
        held += size
    if part:
        yield part


def stacked(numbers: Sequence[Tensor | float], device: torch.device) -> Tensor:
    """One float64 vector on ``device`` of numbers that may be there already, which nobody waits for."""
    plain = torch.tensor([0.0 if torch.is_tensor(n) else float(n) for n in numbers], dtype=torch.float64)
    vector = plain.to(device, non_blocking=True)
    for position, number in enumerate(numbers):
        if torch.is_tensor(number):
            vector[position] = number.detach().to(device)
    return vector


def _zeros(output: Mapping[str, Any]) -> dict[str, float]:
    return {key: 0.0 for key, value in output.items() if isinstance(value, (int, float, Tensor))}


def _told(output: Mapping[str, Any]) -> dict[str, Any]:
    """``output`` as it is sent: without functions, which every process has."""
    return {
        key: tuple(None if callable(item) and not isinstance(item, Tensor) else item for item in value)
        if _has_function(value)
        else value
        for key, value in output.items()
    }


def _with_functions(outputs: list[dict[str, Any]], own: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """``outputs`` with the functions of this process's output; without the entries of such a kind where it has none."""
    if not own:
        return [{key: value for key, value in output.items() if not key.startswith("_")} for output in outputs]
    scored = {key: value for key, value in own[0].items() if _has_function(value)}
    return [{key: _graft(value, scored.get(key)) for key, value in output.items()} for output in outputs]


def _has_function(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and any(callable(item) and not isinstance(item, Tensor) for item in value)


def _graft(sent: Any, own: Any) -> Any:
    if own is None:
        return sent
    return tuple(
        mine if callable(mine) and not isinstance(mine, Tensor) else item for item, mine in zip(sent, own, strict=True)
    )
