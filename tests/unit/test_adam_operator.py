"""The operators for half-precision models: the same bits as their reference implementations, as the update without them, for any threads."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fairseq.ops import library
from fairseq.ops.adam import block_norms, block_norms_reference, low_precision_adam_, low_precision_adam_reference
from fairseq.optim import adam_update
from fairseq.optim.adam_update import Hyperparameters, Segment, update
from fairseq.optim.fairseq_optimizer import total_norm

SHAPES = [(3,), (), (0,), (130, 17), (1 << 15,), (3, (1 << 15) + 7), (2048,), (5, 1, 2049)]
HALVES = [torch.bfloat16, torch.float16]

compiled = pytest.mark.skipif(not library.load(), reason="the operators are not compiled here")


def lists(dtype: torch.dtype) -> list[list[Tensor]]:
    """Weights, gradients, moments and low-precision parameters."""
    params = [torch.randn(shape) for shape in SHAPES]
    grads = [(torch.randn(shape) * 1e-3).to(dtype) for shape in SHAPES]
    zeros = [[torch.zeros_like(param) for param in params] for _ in range(2)]
    return [params, grads, *zeros, [param.to(dtype) for param in params]]


def equal(one: list[list[Tensor]], other: list[list[Tensor]]) -> bool:
    return all(torch.equal(a, b) for pair in zip(one, other, strict=True) for a, b in zip(*pair, strict=True))


@compiled
@pytest.mark.parametrize("factor", [1.0, 0.37, 0.0])
@pytest.mark.parametrize("dtype", HALVES)
def test_update_is_that_of_the_path_without_it(dtype: torch.dtype, factor: float, monkeypatch: pytest.MonkeyPatch):
    one = lists(dtype)
    other = [[tensor.clone() for tensor in column] for column in one]
    for step in (1, 2, 3):
        hyper = Hyperparameters(1e-2, (0.9, 0.98), 1e-6, 0.01, step)
        update([Segment(*row) for row in zip(*one, strict=True)], hyper, factor)
        with monkeypatch.context() as patch:
            patch.setattr(adam_update, "_operator_knows", lambda segment: False)
            update([Segment(*row) for row in zip(*other, strict=True)], hyper, factor)
    assert equal(one, other)


@compiled
@pytest.mark.parametrize("dtype", HALVES)
def test_kernel_gives_the_bits_of_the_twin_for_any_threads(dtype: torch.dtype):
    numbers = (2.0, 1e-2, (0.9, 0.98), 0.01, 1e-6, 0.7)
    results = []
    for threads in (1, 3):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        torch.manual_seed(1)
        columns = lists(dtype)
        low_precision_adam_(*columns, *numbers)
        results.append(columns)
        norms = block_norms(columns[1], 64)
        torch.set_num_threads(before)
        assert torch.equal(norms, block_norms_reference(columns[1], 64))
    torch.manual_seed(1)
    columns = lists(dtype)
    step, lr, betas, decay, eps, factor = numbers
    low_precision_adam_reference(*columns, step, lr, *betas, decay, eps, torch.tensor(factor, dtype=torch.float64))
    assert equal(results[0], results[1]) and equal(results[0], columns)


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
def test_norm_is_the_norm(dtype: torch.dtype):
    grads = lists(torch.float32)[1]
    rounded = [grad.to(dtype) for grad in grads]
    exact = torch.cat([grad.double().reshape(-1) for grad in rounded]).norm()
    torch.testing.assert_close(total_norm(rounded).double(), exact, rtol=1e-6, atol=0)


def test_norm_of_nothing_and_of_what_is_not_finite():
    assert total_norm([]) == 0 and total_norm([torch.zeros(0, dtype=torch.bfloat16)]) == 0
    assert torch.isnan(total_norm([torch.ones(5, dtype=torch.bfloat16), torch.full((2,), torch.nan).bfloat16()]))


def test_gradients_are_left_as_they_are_and_low_precision_parameters_change_version():
    columns = lists(torch.bfloat16)
    before, version = [grad.clone() for grad in columns[1]], columns[4][0]._version
    low_precision_adam_(*columns, 1, 1e-2, (0.9, 0.98), 0.01, 1e-6, 0.5)
    assert all(torch.equal(a, b) for a, b in zip(before, columns[1], strict=True))
    assert columns[4][0]._version > version
    assert all(
        torch.equal(low_param, param.bfloat16()) for param, low_param in zip(columns[0], columns[4], strict=True)
    )


@compiled
def test_lists_that_do_not_fit_are_refused():
    columns = lists(torch.bfloat16)
    for wrong in range(5):
        broken = [list(column) for column in columns]
        broken[wrong] = broken[wrong][:-1]
        with pytest.raises(RuntimeError, match="one length"):
            low_precision_adam_(*broken, 1, 1e-2, (0.9, 0.98), 0.01, 1e-6)
    columns[2][0] = columns[2][0].double()
    with pytest.raises(RuntimeError, match="float32"):
        low_precision_adam_(*columns, 1, 1e-2, (0.9, 0.98), 0.01, 1e-6)


def test_registration():
    columns = lists(torch.bfloat16)
    utilities = ("test_schema", "test_faketensor")
    operators = torch.ops.fairseq
    torch.library.opcheck(
        operators.low_precision_adam_,
        (*columns, 1.0, 1e-2, 0.9, 0.98, 0.01, 1e-6, torch.tensor(0.5)),
        test_utils=utilities,
    )
    torch.library.opcheck(operators.block_norms, (columns[1], 64), test_utils=utilities)
