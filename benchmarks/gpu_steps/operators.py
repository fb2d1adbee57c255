"""Step 2: every operator on the device against float64 on the CPU, outputs and gradients.

An operator may err twice as much as the same call on the CPU in the same type (there the reference implementation or its
compiled form runs), or by 4 eps of the largest number (16 in float32, whose sums are long for its eps), whichever is more.
Errors are relative to the largest number.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gpu_steps.setting import Case, Row, Setting

Inputs = dict[str, Tensor]
Function = Callable[[Inputs], "list[Tensor]"]
TYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def cases(setting: Setting) -> list[Case]:
    from gpu_steps.operator_table import table

    found = [
        Case(f"{name} {type_name}", lambda n=name, t=dtype: check(setting, n, t), least=3, limit=60)
        for name, (_, _, types) in table(setting).items()
        for type_name, dtype in TYPES.items()
        if dtype in types
    ]
    return [*found, Case("not in the table", uncovered, least=2)]


def check(setting: Setting, name: str, dtype: torch.dtype) -> Row:
    from gpu_steps.operator_table import table

    inputs, function, _ = table(setting)[name]
    given = inputs(torch.Generator().manual_seed(1))
    rounded = {key: x.to(dtype) if x.is_floating_point() and key[0] != "_" else x for key, x in given.items()}
    plain = {**rounded, "_plain": torch.ones(())}
    truth = results(function, plain, "cpu", torch.float64)
    yardstick = results(function, plain, "cpu")
    fast = results(function, rounded, setting.device)
    error, usual = (max(map(difference, one, truth)) for one in (fast, yardstick))
    allowed = max(2 * usual, (16 if dtype == torch.float32 else 4) * torch.finfo(dtype).eps)
    row = {"error": error, "on the CPU": usual, "allowed": allowed, "passes": error <= allowed}
    if not row["passes"]:  # NaN does not pass
        raise ArithmeticError(f"off by {error:.2g} where {allowed:.2g} is allowed ({usual:.2g} on the CPU)")
    return row


def results(function: Function, given: Inputs, device: str, wide: torch.dtype | None = None) -> list[Tensor]:
    """Outputs of ``function``, and the gradients that random upstream gradients give its floating-point inputs."""
    inputs: Inputs = {}
    for key, x in given.items():
        if wide is not None and x.is_floating_point() and key[0] != "_":
            x = x.to(wide)
        inputs[key] = copy.deepcopy(x.detach()).to(device)
        if x.is_floating_point() and key[0] not in "_=":
            inputs[key].requires_grad_()
    outputs = function(inputs)
    wanted = [x for x in inputs.values() if x.requires_grad]
    if not wanted or not any(out.requires_grad for out in outputs):
        return [out.detach() for out in outputs]
    generator = torch.Generator().manual_seed(2)
    # The same numbers in every type.
    upstream = [torch.randn(out.shape, generator=generator).bfloat16().to(out.device, out.dtype) for out in outputs]
    gradients = torch.autograd.grad(outputs, wanted, upstream)
    return [*(out.detach() for out in outputs), *gradients]


def difference(found: Tensor, truth: Tensor) -> float:
    found, truth = found.detach().cpu().double(), truth.detach().double()
    if found.shape != truth.shape:
        raise ArithmeticError(f"shape {tuple(found.shape)} instead of {tuple(truth.shape)}")
    return float((found - truth).abs().max() / truth.abs().max().clamp(min=1e-30)) if truth.numel() else 0.0


def uncovered() -> Row:
    """Operators that no entry of the table calls (judged by their names without a suffix)."""
    from gpu_steps.machine import operators
    from gpu_steps.operator_table import COVERED

    names: list[Any] = [name for name in operators() if not name.startswith(COVERED)]
    return {"operators": names}
