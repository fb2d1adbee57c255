"""Fast feedforward in Triton: against the reference implementations in the interpreter, and compiled for devices."""

from __future__ import annotations

import pytest
import torch

from fairseq.ops import fast_feed_forward, fff_products, fff_routes
from fairseq.ops import fff as operator
from fairseq.ops.fff_reference import backward_gathered, fast_feed_forward_reference, forward_gathered, nodes_of_tree
from fairseq.ops.self_check import differences, worst
from tests.fake_device import Waits, fake_cuda
from tests.triton_tools import DEVICES, compile_for, in_interpreter, interpret, needs_triton, outside

TYPES = [torch.float32, torch.float16, torch.bfloat16]  # the interpreter cuts bfloat16 off instead of rounding it
NAMES = ("fast_feed_forward_forward", "fast_feed_forward_backward", "fff_routes")


@needs_triton
@outside
def test_in_the_interpreter():
    interpret(__file__)


@pytest.fixture
def kernels(monkeypatch):
    """With small pieces and tiles, so that there are many."""
    from fairseq.ops.triton import fff_kernels

    for name, value in (("PIECE", 5), ("_WIDTH", 128), ("_WIDEST", 64)):
        monkeypatch.setattr(fff_kernels, name, value)
    return fff_kernels


def problem(lead, columns_in, columns_out, depth, trees, dtype=torch.float32, weights=None, bias=True):
    """x, tables and a gradient; no logit is close enough to 0 for another order of its sum to turn it."""
    torch.manual_seed(1)
    rows = trees * nodes_of_tree(depth)
    while True:
        x, grad = torch.randn(*lead, columns_in).to(dtype), torch.randn(*lead, columns_out).to(dtype)
        shapes = ((rows, columns_in), (rows,), (rows, columns_out))
        tables = [(torch.randn(shape) * 0.5).to(weights or dtype) for shape in shapes]
        tables[1] = tables[1] if bias else None
        _, _, logits = forward_gathered(x, *tables, depth, trees, "gelu", True)
        if not logits.numel() or logits.abs().min() > 1e-5 * logits.abs().max():
            return x, *tables, grad


ODD = ((2, 3), 37, 70, 3, 1)
SHAPES = [((1,), 1, 1, 0, 1), ODD, ((5,), 130, 5, 1, 3), ((3,), 16, 33, 0, 4), ((0,), 8, 6, 2, 2)]


@in_interpreter
@pytest.mark.parametrize(
    ("shape", "dtype"), [*((shape, torch.float32) for shape in SHAPES), (ODD, torch.float16), (ODD, torch.bfloat16)]
)
def test_equals_the_reference(kernels, shape, dtype):
    *_, depth, trees = shape
    for activation, weights, bias in (("gelu", None, True), ("relu", torch.float32, True), ("gelu", None, False)):
        x, *tables, grad = problem(*shape, dtype, weights, bias)
        given = (x, *tables, depth, trees, activation)
        found, expected = kernels.OPERATORS[NAMES[0]](*given, True), forward_gathered(*given, True)
        assert torch.equal(found[1], expected[1]) and found[1].dtype == torch.int32
        assert torch.equal(
            kernels.OPERATORS[NAMES[2]](*given[:3], depth, trees), operator.routes_gathered(*given[:3], depth, trees)
        )
        without = kernels.OPERATORS[NAMES[0]](*given, False)
        assert torch.equal(without[0], found[0]) and not without[1].numel() and not without[2].numel()
        back = (grad, x, tables[0], tables[2], *expected[1:], activation)
        pairs = [*zip(found, expected, strict=True)]
        for wanted in ((True, True), (True, False), (False, True)) if bias and not weights else ((True, True),):
            gradients = [function(*back, *wanted) for function in (kernels.OPERATORS[NAMES[1]], backward_gathered)]
            pairs += zip(*gradients, strict=True)
        for a, b in pairs:
            assert a.shape == b.shape and a.dtype == b.dtype and a.is_contiguous()
        assert worst((a, b) for a, b in pairs if a.numel() and a.is_floating_point()) <= 1 if x.numel() else True


@in_interpreter
def test_zero_and_nan_go_left_and_other_rows_have_no_influence(kernels):
    zeros = torch.zeros(3, 2)
    for bias, second in ((0.0, 1), (-0.0, 1), (float("nan"), 1), (2.0**-126, 2), (-(2.0**-126), 1)):
        routes = kernels.OPERATORS[NAMES[2]](torch.ones(1, 2), zeros, torch.tensor([bias, 0, 0]), 1, 1)
        assert routes.tolist() == [[[0, second]]] and routes.dtype == torch.int64
    x, *tables, grad = problem((6,), 8, 5, 4, 2)
    forward, backward = (kernels.OPERATORS[name] for name in NAMES[:2])
    results = []
    for spoilt in (False, True):
        if spoilt:
            visited = (results[0][1] + 31 * torch.arange(2)[:, None]).flatten()
            others = torch.ones(62, dtype=torch.bool)
            others[visited.long()] = False
            for table in tables:
                table[others] = torch.nan
        found = forward(x, *tables, 4, 2, "gelu", True)
        results.append([*found, *backward(grad, x, tables[0], tables[2], *found[1:], "gelu", True, True)])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True)) and others.any()
    for gradient in results[1][4:]:
        assert not gradient[others].any() and gradient[~others].all(-1 if gradient.dim() > 1 else 0).all()


@in_interpreter
def test_strided_arguments(kernels):
    x, weight_in, bias, weight_out, grad = problem((4, 6), 10, 7, 2, 2)
    forward, backward = (kernels.OPERATORS[name] for name in NAMES[:2])
    turned = [t.transpose(0, 1).contiguous().transpose(0, 1) for t in (x, weight_in, weight_out, grad)]
    found = forward(x, weight_in, bias, weight_out, 2, 2, "gelu", True)
    again = forward(turned[0], turned[1], bias, turned[2], 2, 2, "gelu", True)
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))
    gradients = backward(grad, x, weight_in, weight_out, *found[1:], "gelu", True, True)
    again = backward(turned[3], *turned[:3], *found[1:], "gelu", True, True)
    assert all(torch.equal(a, b) and b.is_contiguous() for a, b in zip(gradients, again, strict=True))


@in_interpreter
@pytest.mark.parametrize("dtype", TYPES)
def test_the_problem_of_the_one_time_check(kernels, dtype):
    assert worst(differences(kernels, operator.SOURCE.references, "cpu", dtype)) <= 1


@outside
@pytest.mark.parametrize(
    "shape", [((2, 9), 37, 70, 3, 1), ((13,), 130, 5, 2, 3), ((7,), 16, 33, 0, 12), ((0,), 8, 6, 2, 2)]
)
@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_without_kernels_rows_are_gathered(shape, activation):
    """What runs on a device that has no kernels, against the masked layer."""
    *_, depth, trees = shape
    x, *tables, grad = (t.double() for t in problem(*shape))
    y, nodes, logits = forward_gathered(x, *tables, depth, trees, activation, True)
    gradients = backward_gathered(grad, x, tables[0], tables[2], nodes, logits, activation, True, True)
    leaves = [t.clone().requires_grad_() for t in (x, *tables)]
    expected = fast_feed_forward_reference(*leaves, depth, trees, activation)
    wanted = (expected.detach(), *torch.autograd.grad(expected, leaves, grad))
    for a, b in zip((y, *gradients), wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


class Silent:
    """A kernel that does nothing."""

    def __getitem__(self, grid):
        return lambda *arguments, **options: None


@needs_triton
@outside
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("depth", [0, 3])
def test_nothing_waits_for_the_device(dtype, depth, monkeypatch):
    from fairseq.ops.triton import fff_kernels as kernels

    for name in ("_walk_kernel", "_slopes_kernel", "_segments_kernel"):
        monkeypatch.setattr(kernels, name, Silent())
    rows = 2 * nodes_of_tree(depth)
    with fake_cuda(monkeypatch), Waits() as waits:
        x, weight_in, bias, weight_out, grad = (
            torch.empty(shape, dtype=dtype, device="cuda") for shape in ((9, 8), (rows, 8), (rows,), (rows, 6), (9, 6))
        )
        for forward, backward in (
            (kernels.OPERATORS[NAMES[0]], kernels.OPERATORS[NAMES[1]]),
            (fff_products.forward_products, fff_products.backward_products),
        ):
            y, nodes, logits = forward(x, weight_in, bias, weight_out, depth, 2, "gelu", True)
            gradients = backward(grad, x, weight_in, weight_out, nodes, logits, "gelu", True, True)
            assert y.shape == (9, 6) and y.dtype == dtype and nodes.shape == logits.shape == (9, 2, depth + 1)
            assert [t.shape for t in gradients] == [t.shape for t in (x, weight_in, bias, weight_out)]
            assert all(t.dtype == dtype and t.device.type == "cuda" for t in gradients)
        assert kernels.OPERATORS[NAMES[2]](x, weight_in, bias, depth, 2).shape == nodes.shape
    assert not waits.lines, waits.report()


@needs_triton
@outside
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("dtype", "columns"), [(torch.bfloat16, 768), (torch.float32, 768), (torch.float16, 4096)])
def test_compiles_without_spills_and_reads_16_bytes_at_a_time(device, dtype, columns, tmp_path):
    from fairseq.ops.triton import fff_kernels as kernels

    numbers = dict.fromkeys(("logits", "activations", "dlogits", "factors"), torch.float32)
    numbers |= dict.fromkeys(("nodes", "rows", "starts"), torch.int32)
    numbers |= {"columns": columns, "trees": 1, "levels": 12, "tree_nodes": 4095, "pairs": 12}
    numbers |= {"HAS_BIAS": True, "GELU": True, "ROWS": kernels._ROWS}
    for name, width in (("_walk_kernel", 1024), ("_slopes_kernel", 256), ("_segments_kernel", 256)):
        kernel = getattr(kernels, name)
        arguments = {n: width if n == "WIDTH" else numbers.get(n, dtype) for n in kernel.arg_names}
        warps = max(1, width // 512)
        found = compile_for(device, kernel, arguments, tmp_path, num_warps=warps, enable_fp_fusion=True)
        assert not found.spilled and found.registers <= 128
        assert "ld.global.v4.b32" in found.ptx and "atom." not in found.ptx


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(
    "shape", [((3, 100), 77, 30, 4, 3), ((5000,), 768, 768, 11, 1), ((0,), 8, 6, 2, 2), ((40,), 3000, 24, 0, 5)]
)
def test_on_a_device(device, shape, dtype):
    *_, depth, trees = shape
    torch.manual_seed(1)
    rows = trees * nodes_of_tree(depth)
    x, grad = torch.randn(*shape[0], shape[1]).to(dtype), torch.randn(*shape[0], shape[2]).to(dtype)
    shapes = ((rows, shape[1]), (rows,), (rows, shape[2]))
    tables = [(torch.randn(s) * 0.05).to(dtype) for s in shapes]
    there = [t.to(device) for t in (x, *tables, grad)]
    nodes = fff_routes(*there[:3], depth, trees)
    same = nodes.cpu() == fff_routes(x, *tables[:2], depth, trees)
    assert same.float().mean() > 0.999 if x.numel() else True  # a logit next to 0 may be turned by rounding
    _, saved, logits = operator.forward_gathered(*there[:4], depth, trees, "gelu", True)
    given = (there[4], there[0], there[1], there[3], saved, logits, "gelu", True, True)
    found = [torch.ops.fairseq.fast_feed_forward_backward.default(*given) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    if x.numel():
        assert worst(zip(found[0], backward_gathered(*given), strict=True)) <= 1
        alike = same.flatten(-2).all(-1)
        y, expected = fast_feed_forward(*there[:4], depth, trees).cpu(), fast_feed_forward(x, *tables, depth, trees)
        assert worst([(y[alike], expected[alike])]) <= 1
