"""How often an update reads a number from the device, which waits for everything the device has still to do.

Meta tensors stand for those of a GPU (anything but the CPU): a mode counts, and answers, the reads.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from fairseq.optim import adam_update, precision
from fairseq.training.peers import Accumulated, Alone
from fairseq.training.trainer import Trainer
from tests.unit.test_precision import root


class Reads(TorchDispatchMode):
    """Counts what ``item()``, ``float()`` and ``bool()`` of a tensor come down to; every answer is 1."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.ops.aten._local_scalar_dense.default:
            self.count += 1
            return 1
        if function is torch.ops.aten._fused_adamw_.default:
            return None  # has no implementation for meta tensors
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
@pytest.mark.parametrize("mode", ["fp32", "bf16"])
def test_an_update_reads_one_number(mode: str, optimizer: str, fused: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(adam_update, "_kernel_knows", lambda segment: fused)
    cfg = root(optimizer, bf16=mode == "bf16")
    cfg.optimization.clip_norm = 1.0
    model = precision.cast_model(nn.Linear(8, 4, device="meta"), mode)
    trainer = SimpleNamespace(
        cfg=cfg,
        model=model,
        optimizer=precision.build(mode, cfg, model.named_parameters()),
        task=SimpleNamespace(optimizer_step=lambda optimizer, model, update_num: optimizer.step()),
        _num_updates=0,
        peers=Alone(dict),
    )
    loss, sample_size = torch.zeros((), device="meta"), torch.ones((), dtype=torch.int64, device="meta")
    with Reads() as reads:
        for param in model.parameters():
            param.grad = torch.zeros_like(param)
        Trainer._apply_gradient(trainer, Accumulated(loss, sample_size, []))
    assert reads.count == 1  # whether the update is finite


@pytest.mark.gpu
def test_an_update_synchronises_once():
    model = nn.Linear(8, 4, device="cuda")
    cfg = root("adam")
    optimizer = precision.build("fp32", cfg, model.named_parameters())
    model(torch.ones(2, 8, device="cuda")).sum().backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        optimizer.multiply_grads(1.0 / torch.full((), 3, device="cuda"))
        optimizer.clip_grad_norm(1.0)
        optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
