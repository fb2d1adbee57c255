"""Fast feedforward: published numbers, the operator against its reference, gradients, threads, types, registration.

``tests/data/fff/layers.safetensors`` holds inputs, visited nodes, outputs and gradients (float64) of the published layer
for small trees, exact ties (zeros of both signs and the smallest normal number) among them; ``weight_out`` is stored by node.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open

import fairseq.ops
from fairseq.ops import fast_feed_forward, fff_products, fff_routes, library
from fairseq.ops.fff_reference import fast_feed_forward_reference
from tests.common import ROOT, assert_as_accurate_as

compiled = pytest.mark.skipif(not library.compiled_for("fff_routes", "cpu"), reason="no compiled kernels")
CASES = ["a", "b", "c", "d", "j", "t"]
SHAPES = [  # leading dimensions, columns in and out, depth, trees
    ((1,), 1, 1, 0, 1),
    ((5,), 17, 300, 4, 1),
    ((2, 33), 130, 7, 3, 5),
    ((70,), 64, 64, 2, 40),
    ((), 9, 5, 3, 2),
    ((0,), 8, 6, 3, 2),
    ((2, 0), 8, 6, 2, 1),
    ((3,), 5, 4, 11, 1),
    ((300,), 40, 33, 6, 1),
    ((700,), 200, 201, 9, 1),  # large enough that tokens are grouped by node
]
RESULTS = ("y", "dx", "dweight_in", "dbias_in", "dweight_out")


@functools.cache
def golden(case):
    with safe_open(ROOT / "tests/data/fff/layers.safetensors", "pt") as file:
        names = [name for name in file.keys() if name.startswith(case + ".")]  # noqa: SIM118 (it is no dictionary)
        tensors = {name.split(".")[1]: file.get_tensor(name) for name in names}
        return tensors, json.loads(file.metadata()[case])


def problem(lead, columns_in, columns_out, depth, trees, dtype=torch.float64):
    rows = trees * (2 ** (depth + 1) - 1)
    shapes = ((*lead, columns_in), (rows, columns_in), (rows,), (rows, columns_out))
    scales = (1, columns_in**-0.5, 0.5, (trees * (depth + 1)) ** -0.5)
    tensors = [(torch.randn(s, dtype=torch.float64) * c).to(dtype) for s, c in zip(shapes, scales, strict=True)]
    return tensors, torch.randn(*lead, columns_out, dtype=torch.float64).to(dtype)


def with_grads(function, tensors, grad, *arguments):
    leaves = [t.detach().clone().requires_grad_() for t in tensors]
    y = function(*leaves, *arguments)
    return [y.detach(), *torch.autograd.grad(y, leaves, grad)]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("function", [fast_feed_forward, fast_feed_forward_reference])
def test_published_layer(case, dtype, function):
    tensors, shape = golden(case)
    inputs = [tensors[name].to(dtype) for name in ("x", "weight_in", "bias_in", "weight_out")]
    found = with_grads(function, inputs, tensors["grad_output"].to(dtype), *shape.values())
    names = ("y", "grad_x", "grad_weight_in", "grad_bias_in", "grad_weight_out")
    tolerance = {"rtol": 1e-12, "atol": 1e-13} if dtype == torch.float64 else {"rtol": 1e-5, "atol": 1e-5}
    for name, tensor in zip(names, found, strict=True):
        torch.testing.assert_close(tensor, tensors[name].to(dtype), **tolerance)
    routes = fff_routes(*inputs[:3], shape["depth"], shape["num_trees"])
    assert torch.equal(routes, tensors["visited"].long())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_operator_is_the_masked_layer(shape, activation):
    *_, depth, trees = shape
    tensors, grad = problem(*shape)
    function = functools.partial(fast_feed_forward, depth=depth, num_trees=trees, activation=activation)
    reference = functools.partial(fast_feed_forward_reference, depth=depth, num_trees=trees, activation=activation)
    for found, wanted in zip(with_grads(function, tensors, grad), with_grads(reference, tensors, grad), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("weights", ["same", "float32"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_as_accurate_as_the_routed_sum(shape, dtype, weights):
    """Half precision adds up in float32 and rounds once; so does the reference implementation of the operator."""
    *_, depth, trees = shape
    tensors, grad = problem(*shape, dtype)
    if weights == "float32":
        tensors = [tensors[0], *(t.float() for t in tensors[1:])]
    routes = fff_routes(*tensors[:3], depth, trees)
    truth = [t.double() for t in tensors]
    assert torch.equal(routes, fff_routes(*truth[:3], depth, trees)), "a logit within rounding of 0: take another seed"
    found = with_grads(fast_feed_forward, tensors, grad, depth, trees)
    exact = with_grads(fast_feed_forward, truth, grad.double(), depth, trees)
    assert [t.dtype for t in found] == [tensors[0].dtype, *(t.dtype for t in tensors)]
    for name, a, b in zip(RESULTS, found, exact, strict=True):
        error = 2 if a.dtype != torch.float32 else 16
        assert_as_accurate_as(a, b.to(a.dtype), b, factor=error, name=name)


def test_gelu_and_its_slope():
    """One node, whose logit is x: the activation and its derivative over the whole range."""
    x = torch.cat([torch.linspace(-14, 14, 4001), torch.tensor([-1e30, 1e-30, 1e30, float("inf")])])[:, None]
    one, nothing = torch.ones(1, 1), torch.zeros(1)
    for dtype, tolerance in ((torch.float32, 2e-7), (torch.float64, 1e-15)):
        z = x.to(dtype).requires_grad_()
        y = fast_feed_forward(z, one.to(dtype), nothing.to(dtype), one.to(dtype), 0)
        exact = x.double().requires_grad_()
        wanted = torch.nn.functional.gelu(exact)
        error = ((y - wanted).detach() / wanted.detach().abs().clamp(min=1))[:-1]
        assert float(error.abs().max()) <= tolerance and y[-1] == float("inf")
        slopes = (torch.autograd.grad(t.sum(), s)[0][:-1].double() for t, s in ((y, z), (wanted, exact)))
        torch.testing.assert_close(*slopes, rtol=0, atol=5 * tolerance)


@pytest.mark.parametrize("shape", [((4,), 3, 5, 2, 2), ((2, 3), 4, 3, 3, 1), ((3,), 2, 2, 0, 3)])
@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_gradcheck(shape, activation):
    *_, depth, trees = shape
    tensors, _ = problem(*shape)
    leaves = [t.requires_grad_() for t in tensors]
    assert torch.autograd.gradcheck(lambda *t: fast_feed_forward(*t, depth, trees, activation), leaves)


@pytest.mark.parametrize("shape", [((900,), 96, 80, 9, 1), ((333,), 30, 20, 4, 7), ((64,), 600, 513, 5, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_same_bits_for_any_number_of_threads(shape, dtype):
    *_, depth, trees = shape
    tensors, grad = problem(*shape, dtype)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(with_grads(fast_feed_forward, tensors, grad, depth, trees))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@compiled
def test_a_token_does_not_depend_on_the_others():
    tensors, _ = problem((700,), 200, 201, 9, 1, torch.float32)
    x, *weights = tensors
    together = fast_feed_forward(x, *weights, 9)
    for some in (slice(3, 4), slice(50, 75)):
        assert torch.equal(fast_feed_forward(x[some], *weights, 9), together[some])


def test_rows_of_other_nodes_have_no_influence():
    tensors, grad = problem((2, 6), 8, 5, 4, 2, torch.float32)
    visited = fff_routes(*tensors[:3], 4, 2).flatten(0, -3) + 31 * torch.arange(2)[:, None]
    others = torch.ones(62, dtype=torch.bool)
    others[visited.flatten()] = False
    assert others.any()
    spoilt = [tensors[0], *(t.clone() for t in tensors[1:])]
    for t in spoilt[1:]:
        t[others] = float("nan")
    clean, dirty = (with_grads(fast_feed_forward, t, grad, 4, 2) for t in (tensors, spoilt))
    assert all(torch.equal(a, b) for a, b in zip(clean, dirty, strict=True))
    for gradient in dirty[2:]:
        assert not gradient[others].any()


def test_zero_and_nan_go_left_and_the_smallest_number_right():
    zeros = torch.zeros(3, 2)
    for bias, second in ((0.0, 1), (-0.0, 1), (float("nan"), 1), (2.0**-126, 2), (-(2.0**-126), 1)):
        routes = fff_routes(torch.ones(1, 2), zeros, torch.tensor([bias, 0, 0]), 1)
        assert routes.tolist() == [[[0, second]]] and routes.dtype == torch.int64


def test_strides_and_missing_parts():
    tensors, grad = problem((6, 10), 12, 9, 3, 2, torch.float32)
    x, weight_in, bias, weight_out = tensors
    expected = with_grads(fast_feed_forward, tensors, grad, 3, 2)
    turned = x.transpose(0, 1).contiguous().transpose(0, 1)
    wide = torch.zeros(6, 10, 24)[..., ::2].copy_(x)
    columns = (weight_in.t().contiguous().t(), bias, weight_out.t().contiguous().t())
    for strided in ((turned, weight_in, bias, weight_out), (wide, weight_in, bias, weight_out), (x, *columns)):
        leaves = [t.requires_grad_() if t.is_leaf else t for t in (s.detach() for s in strided)]
        y = fast_feed_forward(*leaves, 3, 2)
        up = grad.transpose(0, 1).contiguous().transpose(0, 1)
        for a, b in zip((y, *torch.autograd.grad(y, leaves, up)), expected, strict=True):
            assert torch.equal(a, b)
    without = with_grads(lambda a, b, c: fast_feed_forward(a, b, None, c, 3, 2), (x, weight_in, weight_out), grad)
    zero = with_grads(fast_feed_forward, (x, weight_in, torch.zeros_like(bias), weight_out), grad, 3, 2)
    assert all(torch.equal(a, b) for a, b in zip(without, (*zero[:3], zero[4]), strict=True))


def test_only_what_is_wanted_is_computed():
    tensors, grad = problem((5,), 4, 3, 2, 2, torch.float32)
    expected = with_grads(fast_feed_forward, tensors, grad, 2, 2)[1:]
    for wanted in ((0,), (1, 2, 3), (3,), (0, 2)):
        leaves = [t.detach().clone().requires_grad_(i in wanted) for i, t in enumerate(tensors)]
        found = torch.autograd.grad(fast_feed_forward(*leaves, 2, 2), [leaves[i] for i in wanted], grad)
        assert all(torch.equal(a, expected[i]) for a, i in zip(found, wanted, strict=True))


def test_autocast_rounds_x_and_reads_the_weights_as_they_are():
    tensors, grad = problem((2, 9), 16, 11, 3, 2, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = with_grads(fast_feed_forward, tensors, grad.bfloat16(), 3, 2)
        routes = fff_routes(*tensors[:3], 3, 2)
    low = [tensors[0].bfloat16(), *tensors[1:]]
    expected = with_grads(fast_feed_forward, low, grad.bfloat16(), 3, 2)
    assert [t.dtype for t in found] == [torch.bfloat16] + 4 * [torch.float32]
    assert all(torch.equal(a, b.to(a.dtype)) for a, b in zip(found, expected, strict=True))
    assert torch.equal(routes, fff_routes(*low[:3], 3, 2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(dtype):
    tensors, grad = problem((2, 3), 8, 6, 2, 2, dtype)
    ops = torch.ops.fairseq
    leaves = [t.clone().requires_grad_() for t in tensors]
    torch.library.opcheck(ops.fast_feed_forward.default, (*leaves, 2, 2, "relu"))
    for keep in (True, False):
        utils = (
            ("test_schema", "test_faketensor")
            if not keep
            else ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
        )
        torch.library.opcheck(ops.fast_feed_forward_forward.default, (*leaves, 2, 2, "gelu", keep), test_utils=utils)
    torch.library.opcheck(ops.fff_routes.default, (*tensors[:3], 2, 2))
    _, nodes, logits = ops.fast_feed_forward_forward(*tensors, 2, 2, "gelu", True)
    for wanted in ((True, True), (False, True), (True, False)):
        arguments = (grad, tensors[0], tensors[1], tensors[3], nodes, logits, "gelu", *wanted)
        torch.library.opcheck(ops.fast_feed_forward_backward.default, arguments)


def test_compiled_graph():
    tensors, grad = problem((3, 4), 16, 10, 3, 2, torch.float32)

    def function(*t):
        return fast_feed_forward(t[0] * 2, *t[1:], 3, 2) * 0.5

    torch._dynamo.reset()
    quick = torch.compile(function, fullgraph=True, backend="aot_eager")
    for a, b in zip(with_grads(quick, tensors, grad), with_grads(function, tensors, grad), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depth": -1}, "`depth` must be 0 to"),
        ({"num_trees": 0}, "`num_trees` at least 1"),
        ({"depth": 2}, "with 2 trees of depth 2"),
        ({"x": torch.zeros(3, 5)}, "`x` must be"),
        ({"x": torch.zeros(3, 4).double()}, "floating-point type of the weights"),
        ({"x": torch.zeros(3, 4).long()}, "floating-point type of the weights"),
        ({"bias_in": torch.zeros(5)}, "`bias_in` must have shape"),
        ({"weight_out": torch.zeros(5, 4)}, "`weight_out` must have shape"),
        ({"weight_out": torch.zeros(6, 4).double()}, "must have one type"),
        ({"activation": "tanh"}, "`activation` must be gelu or relu"),
    ],
)
def test_mistakes(changes, message):
    names = ("x", "weight_in", "bias_in", "weight_out")
    tensors = [torch.zeros(shape) for shape in ((3, 4), (6, 4), (6,), (6, 4))]
    arguments = {**dict(zip(names, tensors, strict=True)), "depth": 1, "num_trees": 2, **changes}
    with pytest.raises(ValueError, match=message):
        fast_feed_forward(**arguments)


@compiled
def test_kernels_check_before_they_touch_memory():
    ops, (x, w, b, v) = torch.ops.fairseq, problem((3,), 4, 5, 1, 1, torch.float32)[0]
    for tensors in ((x, w[:2], b, v), (x, w, b[:2], v), (x, w, b, v[:2]), (x[:, :3], w, b, v), (x.double(), w, b, v)):
        with pytest.raises(RuntimeError):
            ops.fast_feed_forward_forward(*tensors, 1, 1, "gelu", True)
    y, nodes, logits = ops.fast_feed_forward_forward(x, w, b, v, 1, 1, "gelu", True)
    for grad, ids, sums in (
        (y[:2], nodes, logits),
        (y, nodes + 3, logits),
        (y, nodes - 1, logits),
        (y, nodes[:2], logits),
    ):
        with pytest.raises(RuntimeError):
            ops.fast_feed_forward_backward(grad, x, w, v, ids, sums, "gelu", True, True)


def test_the_package_gives_the_functions():
    assert callable(fairseq.ops.fast_feed_forward) and callable(fairseq.ops.fff_routes)


PROGRAM = """
import torch
from fairseq.ops import fast_feed_forward, fff_routes
torch.manual_seed(3)
x, w, b, v = (torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((600, 9), (63, 9), (63,), (63, 4)))
y = fast_feed_forward(x, w, b, v, 5)
torch.save([y.detach(), fff_routes(x, w, b, 5), *torch.autograd.grad(y.square().sum(), (x, w, b, v))], OUT)
"""


def test_without_the_compiled_library_and_with_other_vectors(tmp_path):
    settings = [{"FAIRSEQ_NATIVE": "0"}, {"FAIRSEQ_VECTORS": "plain"}, {"FAIRSEQ_VECTORS": "avx2"}]
    exec(PROGRAM, {"OUT": tmp_path / "here"})
    for setting in settings:
        program = f"OUT = {str(tmp_path / 'there')!r}\n{PROGRAM}"
        subprocess.run([sys.executable, "-c", program], cwd=ROOT, env={**os.environ, **setting}, check=True)
        torch.testing.assert_close(torch.load(tmp_path / "there"), torch.load(tmp_path / "here"))


WIDE = [((90,), 64, 70, 0, 4500), ((3, 30), 65, 60, 1, 1500), ((120,), 130, 33, 3, 160)]  # leading, I, O, depth, trees


@pytest.mark.parametrize("shape", WIDE)
@pytest.mark.parametrize("kind", [torch.float64, torch.float32, torch.bfloat16, "mixed"])
def test_wide_shallow_trees_give_the_same_through_products(shape, kind):
    *_, depth, trees = shape
    dtype = torch.bfloat16 if kind == "mixed" else kind
    tensors, grad = problem(*shape, dtype)
    tensors = [tensors[0], *(t.float() for t in tensors[1:])] if kind == "mixed" else tensors
    assert fff_products.pays(*tensors[:2], depth) and not fff_products.pays(
        tensors[0].flatten(0, -2)[:1], tensors[1], depth
    )
    routes = fff_routes(*tensors[:3], depth, trees)
    _, nodes, _ = torch.ops.fairseq.fff_products_forward(*tensors, depth, trees, "gelu", True)
    assert torch.equal(nodes.view(routes.shape).long(), routes), "a logit within rounding of 0: take another seed"
    found = with_grads(fast_feed_forward, tensors, grad, depth, trees)
    wanted = with_grads(walked, tensors, grad, depth, trees)
    for name, a, b in zip(RESULTS, found, wanted, strict=True):
        limit = (4 if b.dtype == torch.bfloat16 else 64) * torch.finfo(b.dtype).eps
        assert a.dtype == b.dtype and a.shape == b.shape
        assert float((a.double() - b.double()).abs().max() / b.double().abs().max()) <= limit, name


def walked(*arguments):
    return torch.ops.fairseq.fast_feed_forward_forward(*arguments, "gelu", True)[0]


def test_products_keep_what_is_not_finite_to_what_depends_on_it():
    shape = WIDE[1]
    tensors, grad = problem(*shape, torch.float32)
    tensors[0][1, 3] = float("nan")
    grad[0, 2, 0] = float("inf")
    for table in tensors[1:]:
        table[[4, 31]] = float("nan")
    found, wanted = (with_grads(f, tensors, grad, *shape[3:]) for f in (fast_feed_forward, walked))
    assert all(torch.equal(a.isfinite(), b.isfinite()) for a, b in zip(found, wanted, strict=True))
    assert 0 < found[0].isfinite().sum() < found[0].numel()


def test_products_as_operators():
    tensors, grad = problem((2, 3), 8, 6, 2, 2, torch.float32)
    ops = torch.ops.fairseq
    leaves = [t.clone().requires_grad_() for t in tensors]
    torch.library.opcheck(ops.fff_products_forward.default, (*leaves, 2, 2, "gelu", True))
    _, nodes, logits = ops.fff_products_forward(*tensors, 2, 2, "gelu", True)
    for wanted in ((True, True), (False, True), (True, False)):
        arguments = (grad, tensors[0], tensors[1], tensors[3], nodes, logits, "gelu", *wanted)
        torch.library.opcheck(ops.fff_products_backward.default, arguments)
