"""Adam as fairseq defines it (``--optimizer adam``), and AdamW as published (``--optimizer adamw``).

fairseq's adds epsilon to the square root of the *uncorrected* second moment, and its decoupled weight decay by default hits
every parameter, biases and layer norms included. AdamW is not in the original fairseq.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from fairseq.dataclass.base import literal
from fairseq.errors import CheckpointError, ConfigError
from fairseq.optim.adam_rows import update_visited
from fairseq.optim.adam_update import Hyperparameters, Segment, update
from fairseq.optim.configs import AdamWConfig, FairseqAdamConfig
from fairseq.optim.fairseq_optimizer import (
    Factor,
    FairseqOptimizer,
    LowPrecision,
    as_factor,
    clip_coefficient,
    gradient_norm,
    learning_rates,
    register_optimizer,
)
from fairseq.optim.float32_update import undecorated
from fairseq.tree import HALF


def parse_betas(value: Any, name: str = "adam_betas") -> tuple[float, float]:
    """The two decay rates of the option ``name``: a literal such as ``"(0.9, 0.98)"``, or a sequence of two numbers."""
    try:
        beta1, beta2 = map(float, literal(value, name) if isinstance(value, str) else value)
    except (TypeError, ValueError):
        raise ConfigError(f'{name} must be a pair of numbers such as "(0.9, 0.98)", but is {value!r}') from None
    if not (0.0 <= beta1 < 1.0 and 0.0 <= beta2 < 1.0):
        raise ConfigError(f"{name} must lie in [0, 1), but are {beta1}, {beta2}")
    return beta1, beta2


class Adam(torch.optim.Optimizer):
    """The torch-level optimizer. State per parameter: ``step`` (int), ``exp_avg``, ``exp_avg_sq`` (float32).

    The keys of a group are those of the original's checkpoints: lr, betas, eps, weight_decay, amsgrad (always False).

    With ``sparse_rows`` parameters with the tag of this name (tables of fast feed-forward layers) are updated sparsely:
    a row (index of the first dimension) that is all zeros in the gradient of the update, the sum over micro-batches
    and workers, keeps its weights and both moments to the bit and does not decay. ``step`` counts the updates of the whole
    parameter all the same and corrects the bias of every row, so that a row that is seldom visited takes its first steps
    as late ones, and its moments are averages over the updates that visited it. A row that was visited but whose
    gradient is zero nevertheless (dead ReLU, float16 underflow) counts as not visited.
    """

    supports_memory_efficient_fp16 = True
    supports_flat_params = True
    #: See :class:`fairseq.optim.adam_update.Hyperparameters`.
    corrected_eps = False

    add_param_group = undecorated(torch.optim.Optimizer.add_param_group)
    zero_grad = undecorated(torch.optim.Optimizer.zero_grad)
    state_dict = undecorated(torch.optim.Optimizer.state_dict)

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        sparse_rows: bool = False,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "amsgrad": False})
        self.sparse_rows = sparse_rows
        if sparse_rows:
            self.supports_flat_params = False  # a flat vector has no rows

    @torch.no_grad()
    def step(self, factor: Factor = 1.0, low_precision: LowPrecision | None = None) -> None:  # type: ignore[override]
        """One update with the gradients multiplied by ``factor``. Parameters without gradient are skipped.

        With ``low_precision`` gradients are read from, and rounded results written to, the low-precision parameters of
        each master; a missing gradient then counts as zero.
        """
        for group in self.param_groups:
            alike: dict[tuple[int, bool], list[Segment]] = {}
            for param in group["params"]:
                if low_precision is None and param.grad is None:
                    continue
                state = self._advance(param)
                sparse = self.sparse_rows and getattr(param, "sparse_rows", False)
                alike.setdefault((state["step"], sparse), []).extend(self._segments(param, state, low_precision))
            for (step, sparse), segments in alike.items():
                numbers = Hyperparameters(
                    float(group["lr"]), group["betas"], group["eps"], group["weight_decay"], step, self.corrected_eps
                )
                (update_visited if sparse else update)(segments, numbers, factor)

    def _advance(self, param: Tensor) -> dict[str, Any]:
        """The state of ``param`` with its step counted up; created at the first update."""
        state = self.state[param]
        if not state:
            if param.grad is not None and param.grad.is_sparse:
                raise ConfigError("adam does not support sparse gradients; use --optimizer adagrad")
            state["step"] = 0
            for name in ("exp_avg", "exp_avg_sq"):
                state[name] = torch.zeros_like(param, dtype=_moment_type(param), memory_format=torch.preserve_format)
        state["step"] += 1
        return state

    @staticmethod
    def _segments(param: Tensor, state: Mapping[str, Any], low_precision: LowPrecision | None) -> list[Segment]:
        m, v = state["exp_avg"], state["exp_avg_sq"]
        if low_precision is None:
            return [Segment(param, param.grad, m, v)]  # type: ignore[arg-type]
        halves = low_precision[param]
        sizes = [half.numel() for half in halves]
        whole = param.shape == halves[0].shape  # not to be cut, and perhaps not contiguous
        columns = ([tensor] if whole else tensor.split(sizes) for tensor in (param, m, v))
        return [
            Segment(
                p.view_as(half),
                torch.zeros_like(half) if half.grad is None else half.grad,
                m_part.view_as(half),
                v_part.view_as(half),
                half,
            )
            for p, m_part, v_part, half in zip(*columns, halves, strict=True)
        ]

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load this layout, that of old fused optimizers (``step`` kept by the group), or torch's own AdamW's."""
        stored, groups = state_dict["param_groups"], []
        for group, own in zip(stored, self.param_groups, strict=True):
            if group.get("amsgrad"):
                raise CheckpointError(
                    "the optimizer state of the checkpoint was made with amsgrad, which is not supported; "
                    "start it afresh with --reset-optimizer"
                )
            known = {key: group.get(key, value) for key, value in own.items()}
            groups.append({**known, "betas": parse_betas(known["betas"])})
        # The base class would round float32 moments of a half-precision parameter to its type.
        undecorated(torch.optim.Optimizer.load_state_dict)(self, {"state": {}, "param_groups": groups})
        for group, own in zip(stored, self.param_groups, strict=True):
            for index, param in zip(group["params"], own["params"], strict=True):
                if index in state_dict["state"]:
                    self.state[param] = _entry(state_dict["state"][index], group.get("step", 0), index, param)


def _moment_type(param: Tensor) -> torch.dtype:
    return torch.float32 if param.dtype in HALF else param.dtype


def _entry(entry: Mapping[str, Any], group_step: Any, index: int, param: Tensor) -> dict[str, Any]:
    """A stored state entry with exactly our three values, for ``param``."""
    missing = {"exp_avg", "exp_avg_sq"} - set(entry)
    if missing:
        raise CheckpointError(
            f"the optimizer state of the checkpoint has no {' and '.join(sorted(missing))} for parameter {index}: it "
            "was not written by adam; start it afresh with --reset-optimizer"
        )
    moments = {name: entry[name].to(param.device, _moment_type(param)) for name in ("exp_avg", "exp_avg_sq")}
    return {"step": int(entry.get("step", group_step)), **moments}


class DeferredScaling(FairseqOptimizer):
    """What Adam and AdamW share: gradients are multiplied in the update itself, without a pass of its own.

    Between ``multiply_grads`` and ``step`` the parameters' ``grad`` therefore still holds the unscaled values.
    """

    elementwise = True
    _factor: Factor = 1.0
    _optimizer: Adam

    @property
    def optimizer_config(self) -> dict[str, Any]:
        return {
            "lr": learning_rates(self.cfg)[0],
            "betas": parse_betas(self.cfg.adam_betas),
            "eps": self.cfg.adam_eps,
            "weight_decay": self.cfg.weight_decay,
        }

    @property
    def sparse_rows(self) -> bool:
        return bool(getattr(self.cfg, "fff_sparse_update", False))

    def multiply_grads(self, c: float | Tensor) -> None:
        self._factor = self._factor * as_factor(c)

    def clip_grad_norm(self, max_norm: float) -> Tensor:
        norm = gradient_norm(self.params) * self._factor
        if max_norm > 0:
            self._factor = self._factor * clip_coefficient(norm, max_norm)
        return norm

    def step(self) -> None:
        factor, self._factor = self._factor, 1.0
        self._optimizer.step(factor)

    def step_from(self, low_precision: LowPrecision, factor: float | Tensor = 1.0) -> None:
        self._optimizer.step(as_factor(factor), low_precision)

    def zero_grad(self) -> None:
        super().zero_grad()
        self._factor = 1.0


@register_optimizer("adam", dataclass=FairseqAdamConfig)
class FairseqAdam(DeferredScaling):
    """The optimizer of old recipes; the class name is stored in checkpoints."""

    decays_by_name = True

    def __init__(self, cfg: Any, params: Iterable[Any]) -> None:
        super().__init__(cfg)
        if getattr(cfg, "fp16_adam_stats", False):
            raise ConfigError(
                "fp16_adam_stats needs apex's deprecated FusedAdam, which is not supported: the moments are always "
                "float32; leave the option out"
            )
        self._optimizer = Adam(params, **self.optimizer_config, sparse_rows=self.sparse_rows)


class AdamW(Adam):
    """Epsilon is added to the bias-corrected second moment; Loshchilov and Hutter (2019), algorithm 2."""

    corrected_eps = True
    supports_flat_params = False  # weight decay depends on the parameter


@register_optimizer("adamw", dataclass=AdamWConfig)
class FairseqAdamW(DeferredScaling):
    """By default without weight decay on parameters whose names match ``no_decay``."""

    decays_by_name = True

    def __init__(self, cfg: Any, params: Iterable[Any]) -> None:
        super().__init__(cfg)
        self._optimizer = AdamW(params, **self.optimizer_config, sparse_rows=self.sparse_rows)
