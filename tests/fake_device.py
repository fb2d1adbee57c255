"""Training on a CUDA device that is not there: fake tensors, and a watcher of what would wait for it.

Shapes, types and devices of fake tensors are real, their numbers are not: whoever asks for one gets an answer from the
watcher, which notes the line. The backward pass is left out (torch's engine wants a driver): gradients are zeros.
"""

from __future__ import annotations

import ctypes
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import fairseq
from fairseq.dataclass.configs import OptimizationConfig
from fairseq.logging import metrics
from fairseq.modules import attention_bias
from fairseq.ops.triton import available
from fairseq.optim import precision
from fairseq.tasks.fairseq_task import FairseqTask
from fairseq.training import trainer as training
from tests.unit import roberta

PACKAGE = str(Path(fairseq.__file__).parent)
CHOSEN = 7  # how many elements a mask on the device chooses, as far as anybody can tell
aten = torch.ops.aten


def line() -> str:
    """The innermost line of the package that is being run."""
    for frame in reversed(traceback.extract_stack()):
        if frame.filename.startswith(PACKAGE):
            return f"{frame.filename.removeprefix(PACKAGE)}:{frame.lineno} {frame.line}"
    return "outside the package"


def masks(indices: Any, device: str) -> list[Tensor]:
    return [x for x in indices if isinstance(x, Tensor) and x.dtype == torch.bool and x.device.type == device]


class Waits(TorchDispatchMode):
    """Notes every operator that waits for the device, with the line that called it.

    That is: numbers that are read, shapes that depend on values, copies to the CPU, and copies to the device, other than
    those from the pinned memory of a batch, which do not block (`Trainer.prepare_sample`).
    """

    def __init__(self, device: str = "cuda") -> None:
        super().__init__()
        self.device = device
        self.lines: list[str] = []

    def note(self, what: str) -> None:
        self.lines.append(f"{what}: {line()}")

    def report(self) -> str:
        return f"{len(self.lines)} waits:\n" + "\n".join(self.lines)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        on_device = any(x.device.type == self.device for x in tensors)
        if function in (aten._local_scalar_dense.default, aten.is_nonzero.default, aten.equal.default):
            if on_device:
                self.note("number read")
            kind = tensors[0].dtype
            return 1.0 if kind.is_floating_point else True if kind == torch.bool else 1
        if function is aten.nonzero.default and on_device:
            self.note("nonzero")
            return torch.empty(CHOSEN, tensors[0].dim(), dtype=torch.int64, device=self.device)
        if function is aten.index.Tensor and masks(args[1], self.device):
            self.note("index by a mask")
            return args[0].new_empty(CHOSEN, *args[0].shape[args[1][0].dim() :])
        if function is aten._fused_adamw_.default:
            return None  # has no fake implementation
        if function in (aten._to_copy.default, aten.copy_.default):
            self._watch_copy(args, kwargs)
        try:
            return function(*args, **kwargs)
        except (fake_tensor.DynamicOutputShapeException, fake_tensor.DataDependentOutputException):
            raise AssertionError(f"{function} needs values of the device at {line()}") from None

    def _watch_copy(self, args: Any, kwargs: Any) -> None:
        copies_to = len(args) > 1 and isinstance(args[1], Tensor)  # copy_(to, from)
        source = args[1 if copies_to else 0].device.type
        target = args[0].device.type if copies_to else torch.device(kwargs.get("device") or source).type
        non_blocking = args[2] if len(args) > 2 else kwargs.get("non_blocking", False)
        if source != target and not (target == self.device and non_blocking and "tensor.to(self.device" in line()):
            self.note(f"copy from {source} to {target}")


def configuration(
    mode: str, memory_efficient: bool = False, ema: bool = False, sparse: bool = False, optimizer: Any = None
) -> Any:
    """``optimizer``: its section, if not Adam's."""
    common = SimpleNamespace(
        **{name: name == mode for name in ("fp16", "bf16", "amp")},
        **{f"memory_efficient_{name}": name == mode and memory_efficient for name in ("fp16", "bf16")},
        **dict.fromkeys(("cpu", "compile"), False),
        fp16_init_scale=128,
        fp16_scale_window=100,
        fp16_scale_tolerance=0.0,
        fp16_no_flatten_grads=False,
        threshold_loss_scale=None,
        min_loss_scale=1e-4,
        amp_init_scale=64,
        amp_scale_window=2,
        amp_batch_retries=2,
        seed=1,
        empty_cache_freq=0,
    )
    adam = {
        "adam_betas": "(0.9, 0.98)",
        "adam_eps": 1e-6,
        "weight_decay": 0.01,
        "no_decay": "",
        "fff_sparse_update": sparse,
    }
    return SimpleNamespace(
        common=common,
        optimizer=optimizer or SimpleNamespace(_name="adam", lr=[0.01], **adam),
        optimization=OptimizationConfig(clip_norm=1.0, lr=[0.01]),
        distributed_training=SimpleNamespace(distributed_world_size=1, device_id=0),
        ema=SimpleNamespace(
            **{"store_ema": ema, "ema_decay": 0.9, "ema_start_update": 0, "ema_update_freq": 1},
            **{"ema_fp32": True, "ema_seed_model": None},
        ),
        lr_scheduler=SimpleNamespace(_name="fixed", lr=[0.01], warmup_updates=0, force_anneal=None, lr_shrink=0.1),
        checkpoint=SimpleNamespace(save_dir="", patience=-1),
    )


class Task(roberta.Task):
    """What the trainer calls, of the real task."""

    train_step = FairseqTask.train_step
    valid_step = FairseqTask.valid_step
    optimizer_step = FairseqTask.optimizer_step
    reduce_metrics = FairseqTask.reduce_metrics


CPU_LIBRARY = Path(torch.__file__).parent / "lib" / "libc10.so"
CUDA, META = 1, 14  # numbers of device types in torch


@contextmanager
def guarded() -> Iterator[None]:
    """A torch without CUDA lets nobody index a tensor that says it is there: it has no guard that would make the device
    the current one. Meta tensors have one that does nothing, which serves here."""
    if torch.version.cuda is not None:  # has a guard, which fake tensors replace where there is no device
        yield
        return
    try:
        library = ctypes.CDLL(str(CPU_LIBRARY))
        guards = (ctypes.c_void_p * (META + 1)).in_dll(library, "_ZN3c104impl26device_guard_impl_registryE")
    except (OSError, ValueError) as error:
        pytest.skip(f"this build of torch cannot pretend that there is a device: {error}")
    before, guards[CUDA] = guards[CUDA], guards[META]
    try:
        yield
    finally:
        guards[CUDA] = before


def forget() -> None:
    metrics.reset()
    for found in (attention_bias._sent_slopes, available):
        found.cache_clear()


@contextmanager
def fake_cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A CUDA device of fake tensors."""
    with guarded(), FakeTensorMode(allow_non_fake_inputs=True), monkeypatch.context() as patch:
        patch.setattr(fake_tensor, "CONSTANT_NUMEL_LIMIT", -1)  # remembers no values, as a device would not
        patch.setattr(fake_tensor, "init_gpu_context", lambda *unused: None)
        patch.setattr(FakeTensorMode, "avoid_device_init", True, raising=False)  # asked again at every entry
        patch.setattr(torch.cuda, "is_available", lambda: True)
        patch.setattr(torch.cuda, "max_memory_allocated", lambda *unused: 0)
        patch.setattr(torch.cuda, "reset_peak_memory_stats", lambda *unused: None)
        patch.setattr(torch.cuda, "get_device_properties", lambda *unused: SimpleNamespace(total_memory=1 << 30))
        patch.setattr(torch.nn.Module, "to", lambda module, *unused, **more: module)
        patch.setattr(training, "CheckpointStore", lambda *unused: None)
        patch.setattr(precision, "cast_model", lambda model, mode: model)
        # No kernel may be tried there, and nobody may remember that.
        patch.setattr(torch.cuda, "get_device_capability", lambda *unused: (0, 0))
        forget()
        try:
            yield
        finally:
            forget()


def fake_trainer(
    mode: str,
    arch: str,
    criterion: Any,
    prepare: Callable[[Any], None] | None = None,
    options: dict[str, Any] | None = None,
    **values: Any,
) -> training.Trainer:
    """A trainer of the small model ``arch`` on the fake device, in ``mode``; ``prepare`` may add heads to the model.

    ``options`` are those of `configuration`.
    """
    dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16}
    torch.set_default_dtype(dtypes.get(mode, torch.float32))
    try:
        with torch.device("cuda"):
            model = roberta.small_model(arch, **values)
            if prepare is not None:
                prepare(model)
    finally:
        torch.set_default_dtype(torch.float32)
    trainer = training.Trainer(configuration(mode, **options or {}), Task(), model, criterion)  # type: ignore[arg-type]

    def backward(loss: Tensor) -> None:
        assert loss.device.type == "cuda"
        if mode == "amp":
            trainer.optimizer.scaler.scale(loss)
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)

    trainer.optimizer.backward = backward  # type: ignore[method-assign]
    return trainer


def waits_of_updates(trainer: training.Trainer, samples: list[dict[str, Any]], count: int = 2) -> Waits:
    """What the last of ``count`` updates from ``samples`` waits for; the first ones may put things on the device."""
    for _ in range(count):
        with Waits() as waits, metrics.aggregate("train_inner"):
            assert trainer.train_step(samples) is not None
    return waits
