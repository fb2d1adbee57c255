"""Sharded models (``--ddp-backend fully_sharded``): every process holds, and updates, some rows of each parameter.

This is torch's ``fully_shard``, which puts the rows together for the passes that need them and averages gradients to the
rows' owners. The model keeps its modules and names. The optimizer gets the rows of this process as plain parameters
(`fairseq.distributed.shards`). In half precision the rows are float32 and what the layers compute with is rounded from
them, so that they are the masters.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import Parameter

from fairseq.checkpoint.shard_reader import own_slices
from fairseq.checkpoint.sharded import Writers
from fairseq.distributed import group as distributed
from fairseq.distributed import shards
from fairseq.errors import ConfigError
from fairseq.logging.setup import TRAIN_LOGGER
from fairseq.modules.encoder import Encoder
from fairseq.optim.parameter_groups import copy_tags
from fairseq.registry import OPTIMIZERS
from fairseq.training.peers import Accumulated, Alone, Together, Wishes, hand_out
from fairseq.tree import HALF, is_sharded

logger = logging.getLogger(TRAIN_LOGGER)


LEAST = 100_000_000
"""Weights from which on a model is put together layer by layer (``min_params_to_wrap``)."""


@dataclass(frozen=True)
class Sharding:
    """How models of a run are sharded.

    Args:
        least: weights from which on a model is put together layer by layer, a smaller one as a whole.
        dtype: what its layers compute in, if not in the type of the shards.
        keeps: whether layers stay whole between the forward and the backward pass.
        exact_sums: whether gradients are added up in float32.
        offload: whether shards, and their updates, are on the CPU.
    """

    least: int
    dtype: torch.dtype | None
    keeps: bool
    exact_sums: bool
    offload: bool

    def apply(self, model: nn.Module) -> list[Parameter]:
        """Shard ``model`` in place; returns those of its parameters that all processes hold.

        These are single numbers, and what stays float32 in a model of half precision.
        """
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard

        parameters = dict(model.named_parameters())
        kept = [p for p in parameters.values() if p.dim() == 0 or self.dtype is not None and p.dtype not in HALF]
        device = next(iter(parameters.values())).device
        if self.offload and kept and device.type == "cuda":
            raise ConfigError("--cpu-offload does not go with parameters that cannot be sharded; leave it out")
        for parameter in parameters.values():
            if parameter.dtype in HALF:
                parameter.data = parameter.data.float()
        policy = MixedPrecisionPolicy(self.dtype, torch.float32 if self.exact_sums else None, cast_forward_inputs=False)
        options: dict[str, Any] = {
            "mesh": init_device_mesh(device.type, (distributed.get_data_parallel_world_size(),)),
            "mp_policy": policy,
            "offload_policy": CPUOffloadPolicy() if self.offload and device.type == "cuda" else OffloadPolicy(),
            "ignored_params": set(kept),
        }
        if sum(p.numel() for p in parameters.values()) >= self.least:
            for encoder in list(_encoders(model)):
                for layer in encoder.layers:
                    fully_shard(layer, reshard_after_forward=not self.keeps, **options)
        # Tied weights are in one group, which is whole from the first use to the last one in the backward pass: losses may
        # read them outside of the model.
        fully_shard(model, reshard_after_forward=False, **options)
        for name, parameter in model.named_parameters():
            copy_tags(parameters[name], parameter)
        shards.take_whole_tensors(model)
        return kept


def planned(cfg: Any, precision: str) -> Sharding | None:
    """How the run with the root configuration ``cfg`` shards its models; None if it does not."""
    if distributed.get_data_parallel_world_size() == 1 or cfg.distributed_training.ddp_backend != "fully_sharded":
        return None
    section = cfg.distributed_training
    return Sharding(
        least=getattr(cfg.model, "min_params_to_wrap", LEAST),
        dtype={"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision),
        keeps=section.no_reshard_after_forward,
        exact_sums=section.fp32_reduce_scatter,
        offload=section.cpu_offload,
    )


def _encoders(model: nn.Module) -> Iterator[Encoder]:
    return (module for module in model.modules() if isinstance(module, Encoder))


class Sharded(Together):
    """One of several processes that share the parameters."""

    shares_passes = True

    def __init__(
        self,
        model: nn.Module,
        criterion: nn.Module,
        sharding: Sharding,
        cfg: Any,
        summable: bool,
        wishes: Wishes,
    ) -> None:
        self._sharding = sharding
        self._rows: list[tuple[Parameter, Parameter]] = []
        self._model, self._seed = model, cfg.common.seed
        self._uneven = bool(cfg.optimization.batch_ramp_updates or cfg.optimization.batches_per_update)
        self._draws = torch.Generator()
        super().__init__(model, criterion, cfg.distributed_training, summable, wishes)
        everybody = Writers(distributed.get_data_parallel_rank(), self._size, distributed.gather)
        self.writers = everybody if cfg.distributed_training.use_sharded_state else None
        self.shards = own_slices(model, everybody)

    def _share(self, model: nn.Module, section: Any) -> None:
        hand_out((*model.parameters(), *model.buffers()))
        self._own += self._sharding.apply(model)
        for encoder in _encoders(model):
            encoder.layer_draws = self._draws

    def rows(self, named: Iterable[tuple[str, Parameter]]) -> list[tuple[str, Parameter]]:
        found = []
        for name, parameter in named:
            own = parameter
            if is_sharded(parameter):
                own = shards.rows_for_optimizer(parameter, self._device)
                copy_tags(parameter, own)
                self._rows.append((parameter, own))
            found.append((name, own))
        return found

    def forget_gradients(self) -> None:
        for parameter, _ in self._rows:
            parameter.grad = None

    def each(self, samples: Iterable[Any], update: int) -> Iterator[Any]:
        """As ever, but equally many for all, who have to go through the model together: the others are empty."""
        self._draws.manual_seed(self._seed + update)
        batches = list(super().each(samples, update))
        most = max(distributed.gather(len(batches))) if self._uneven else len(batches)
        yield from batches + [None] * (most - len(batches))

    def add_up(self, total: Accumulated) -> Accumulated:
        for parameter, rows in self._rows:
            rows.grad = None if parameter.grad is None else shards.own_rows(parameter.grad)
        total = super().add_up(total)
        if self._sharding.offload:  # everything that gradients are multiplied by is where they are
            total.loss, total.sample_size = (torch.as_tensor(sum).cpu() for sum in (total.loss, total.sample_size))
        return total

    def whole(self, state: Any) -> Any:
        return shards.whole(state, keep=distributed.get_data_parallel_rank() == 0)

    def placed(self, state: Any, like: Any) -> Any:
        return shards.placed(state, like)

    def first_found(self, found: str | None) -> str | None:
        return next((text for text in distributed.gather(found) if text is not None), None)

    def _weights(self, model: nn.Module) -> str:
        return "rows"  # every process has others


def meet(
    cfg: Any, task: Any, model: nn.Module, criterion: nn.Module, sharding: Sharding | None, wishes: Wishes
) -> Alone:
    """What stands for the other processes of the run, or for there being none."""
    if distributed.get_data_parallel_world_size() == 1:
        return Alone(wishes)
    summable = task.logging_outputs_can_be_summed(criterion)
    if sharding is not None:
        return Sharded(model, criterion, sharding, cfg, summable, wishes)
    return Together(model, criterion, cfg.distributed_training, summable, wishes)


_OPTIONS = ("no_reshard_after_forward", "fp32_reduce_scatter", "cpu_offload", "use_sharded_state")


def check_sharding(cfg: Any) -> None:
    """Refuse what does not go with sharding, and ways of sharding that are not here."""
    section = cfg.distributed_training
    if section.zero_sharding != "none":
        raise ConfigError(
            "zero_sharding is not supported: --ddp-backend fully_sharded shards the state of the optimizer, and the "
            "parameters with it"
        )
    if section.ddp_backend != "fully_sharded" or section.distributed_world_size == 1:
        idle = [name for name in _OPTIONS if getattr(section, name)]
        if idle:
            what = " and ".join(idle)
            logger.warning("%s changes nothing without ddp_backend fully_sharded and several processes", what)
        return
    if section.use_sharded_state and cfg.checkpoint.write_checkpoints_asynchronously:
        raise ConfigError(
            "--use-sharded-state does not go with --write-checkpoints-asynchronously: all processes write together, and wait "
            "for each other; leave one of them out"
        )
    if section.cpu_offload and cfg.common.amp:
        raise ConfigError("--cpu-offload does not go with --amp; use --bf16")
    if section.ddp_comm_hook != "none":
        raise ConfigError(
            "--ddp-comm-hook compresses the gradients of replicated models; with --ddp-backend fully_sharded --bf16 "
            "halves what is sent"
        )
    name = str(getattr(cfg.optimizer, "_name", None))
    if name in OPTIMIZERS and not getattr(OPTIMIZERS.get(name), "elementwise", False):
        raise ConfigError(
            f"--optimizer {name} needs whole parameters, but --ddp-backend fully_sharded gives each process some of their "
            "rows; use adam or adamw, or another --ddp-backend"
        )
