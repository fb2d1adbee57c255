"""Triton kernels are used where they work, and nowhere else."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import types
import warnings

import pytest
import torch

from fairseq.ops import library, self_check
from tests.common import ROOT

CUDA = torch.device("cuda", 0)
FLOAT = torch.float32


def increase(x, *unused):
    """The reference implementation; changes its argument too."""
    return x.add_(1) * 2


@pytest.fixture
def machine(monkeypatch):
    """A machine with a device, and a module of kernels whose operator ``increase`` a test may break."""
    module = types.SimpleNamespace(calls=0, OPERATORS={"increase": increase})

    def problems(device, dtype):
        module.calls += 1
        return {"increase": (torch.ones(3, dtype=dtype), [torch.arange(3)], None, 0.5)}

    module.PROBLEMS = problems
    module.source = self_check.Source(lambda: module, {"increase": increase})
    monkeypatch.setattr(self_check.triton, "available", lambda device: True)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.delenv("FAIRSEQ_NATIVE", raising=False)
    return module


def test_a_right_kernel_is_tried_once_per_device_and_type(machine):
    machine.OPERATORS["increase"] = lambda x, *_: increase(x) + 1e-6
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            assert self_check.kernels(machine.source, CUDA, FLOAT) is machine.OPERATORS
        assert machine.calls == 1
        assert self_check.kernels(machine.source, CUDA, torch.bfloat16) is machine.OPERATORS and machine.calls == 2


def fails(x, *unused):
    raise RuntimeError("no such\ninstruction")


@pytest.mark.parametrize(
    ("kernel", "reason"),
    [
        (lambda x, *_: increase(x) + 1e-2, "differ from the reference implementations by .* times"),
        (lambda x, *_: x + 3, "differ from the reference implementations by .* times"),  # without changing x
        (lambda x, *_: increase(x) * torch.nan, "differ from the reference implementations by nan times"),
        (fails, "fail here .*no such"),
    ],
)
def test_a_wrong_one_is_refused_with_one_warning(machine, kernel, reason):
    machine.OPERATORS["increase"] = kernel
    with pytest.warns(
        UserWarning, match=f"increase. are not used on cuda:0 for torch.float32: they {reason}"
    ) as caught:
        for _ in range(3):
            assert not self_check.kernels(machine.source, CUDA, FLOAT)
    assert len(caught) == 1 and machine.calls == 1


@pytest.mark.parametrize("dtype", self_check.TYPES)
def test_limits_let_roundings_pass_and_no_mistake(dtype):
    x = torch.tensor([1.0, -2.0], dtype=dtype)
    eps = torch.finfo(dtype).eps
    assert self_check.worst([(x, x), (x * (1 + eps), x)]) < 1 < self_check.worst([(x, x), (x * 1.05, x)])
    products = self_check.Source(lambda: None, {}, products=True)
    wide = x.float()
    for factor, passes in ((1 + eps, True), (1.05, False)):  # a wide result of narrow operands
        found = [(wide * factor, wide)]
        assert (self_check.worst(found, products.rounding(dtype)) < 1) is passes
    assert self_check.Source(lambda: None, {}).rounding(dtype) == 0


def test_limits_know_tensorfloat(monkeypatch):
    source = self_check.Source(lambda: None, {}, products=True)
    assert source.rounding(torch.float32) == torch.finfo(torch.float32).eps
    monkeypatch.setattr(self_check, "precision", lambda: "tf32")
    assert source.rounding(torch.float32) == 2.0**-10 == source.rounding(torch.float16)


def test_where_nothing_is_tried(machine, monkeypatch):
    assert not self_check.kernels(machine.source, torch.device("cpu"), FLOAT)
    assert not self_check.kernels(machine.source, CUDA, torch.float64)
    with monkeypatch.context() as patch:
        patch.setattr(self_check.triton, "available", lambda device: False)
        assert not self_check.kernels(machine.source, CUDA, FLOAT)
    monkeypatch.setenv("FAIRSEQ_NATIVE", "0")
    assert not self_check.kernels(machine.source, CUDA, FLOAT)
    assert machine.calls == 0


def test_an_operator_takes_the_kernel_or_the_reference(machine, monkeypatch):
    implementations = {}
    monkeypatch.setattr(torch.library, "impl", lambda name, key, run: implementations.update({(name, key): run}))
    monkeypatch.setattr(library, "_ON_CUDA", {})
    library.define_on_cuda(machine.source)
    run = implementations["fairseq::increase", "CUDA"]
    assert run(torch.ones(1)) == 4  # on the CPU no kernel is trusted
    monkeypatch.setattr(self_check, "kernels", lambda source, device, dtype: source.load().OPERATORS)
    machine.OPERATORS["increase"] = lambda x, *_: "kernel"
    assert run(torch.ones(1)) == "kernel" == run([torch.ones(1)])
    machine.OPERATORS["increase"] = lambda x, *_: NotImplemented
    assert run(torch.ones(1)) == 4
    assert library.has_kernel("increase", CUDA, FLOAT) and not library.has_kernel(
        "increase", torch.device("meta"), FLOAT
    )


def test_operators_do_not_import_their_kernels_before_they_are_needed():
    code = (
        "import sys, torch\n"
        "from fairseq.ops import linear_cross_entropy, residual, adam\n"
        "from fairseq.modules.dropout import dropout_add_norm\n"
        "x = torch.randn(2, 8)\ndropout_add_norm(x, x, torch.nn.LayerNorm(8), 0.5, True)\n"
        "assert not [name for name in sys.modules if name.startswith('fairseq.ops.triton.')]\n"
        "has = torch._C._dispatch_has_kernel_for_dispatch_key\n"
        "names = ['cross_entropy_rows_', 'dropout_add', 'dropout_add_layer_norm_forward', 'low_precision_adam_',\n"
        "         'dropout_add_layer_norm_backward']\n"
        "assert all(has('fairseq::' + name, 'CUDA') for name in names)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
