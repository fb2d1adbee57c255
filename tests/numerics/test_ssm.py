"""Convolutions of state-space models: published kernels, both ways against each other, padding, gradients."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from fairseq.ops import ssm
from fairseq.ops.ssm import SSM, conv_chunks, conv_fft, ssm_conv, ssm_kernel, ssm_step
from tests.common import ROOT

GOLDEN = load_file(ROOT / "tests" / "data" / "bigs" / "ssm.safetensors")
CASES = sorted(name.removesuffix(".K_f64") for name in GOLDEN if name.endswith(".K_f64"))


def parameters(modes: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> SSM:
    """Poles on both sides of the clip, fast and slow ones."""
    draw = torch.Generator().manual_seed(seed)
    A_re = -torch.rand(modes, generator=draw) * 2
    A_re[0] = 0.2
    values = (
        A_re,
        torch.randn(modes, generator=draw) * 20,
        torch.randn(modes, 2, generator=draw) * 0.7,
        torch.rand(1, generator=draw) * 4.6 - 4.6,
        torch.randn(1, generator=draw),
    )
    return SSM(*(x.to(dtype).requires_grad_() for x in values))


def hippo(modes: int, dtype: torch.dtype) -> SSM:
    values = (
        torch.full((modes,), -0.5),
        GOLDEN["hippo.N64"][:modes],
        torch.ones(modes, 2),
        torch.tensor([-4.6]),
        torch.ones(1),
    )
    return SSM(*(x.to(dtype).requires_grad_() for x in values))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype, limit", [(torch.float64, 1e-10), (torch.float32, 1e-6)])
def test_kernels_of_the_reference(case: str, dtype: torch.dtype, limit: float) -> None:
    given = [GOLDEN[f"{case}.{name}"].to(dtype) for name in ("A_re", "A_im", "C", "log_step")]
    expected = GOLDEN[f"{case}.K_f64"]
    kernel = ssm_kernel(*given, len(expected))
    assert kernel.dtype == dtype and (kernel.double() - expected).abs().max() <= limit * expected.abs().max()
    for shorter in (1, 2, len(expected) // 2 + 1):
        assert torch.allclose(ssm_kernel(*given, shorter), kernel[:shorter], rtol=limit, atol=limit)


def test_a_whole_layer_of_the_reference() -> None:
    layer = [GOLDEN[f"layer.{name}"].double() for name in SSM._fields]
    for method in ("fft", "chunks"):
        y, _ = ssm_conv(GOLDEN["layer.u"].double(), GOLDEN["layer.u"].double(), layer, layer, method=method)
        assert (y - GOLDEN["layer.y"]).abs().max() < 1e-10


@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 130, 4096])
@pytest.mark.parametrize("make", [parameters, hippo])
def test_chunks_equal_the_transform(length: int, make: object) -> None:
    """Outputs and all gradients, in both directions, for lengths around the chunk's."""
    given = make(9, torch.float64)  # type: ignore[operator]
    draw = torch.Generator().manual_seed(length)
    u, up = (torch.randn(2, length, 70, generator=draw, dtype=torch.float64).requires_grad_() for _ in range(2))
    for reverse in (False, True):
        results = [conv(u, given, reverse) for conv in (conv_fft, conv_chunks)]
        gradients = [torch.autograd.grad(y, (u, *given), up) for y in results]
        assert (results[0] - results[1]).abs().max() < 1e-10
        for a, b in zip(*gradients, strict=True):
            assert (a - b).abs().max() <= 1e-9 * a.abs().max().clamp(min=1)
        narrow = conv_chunks(u.float(), SSM(*(x.float() for x in given)), reverse)
        assert narrow.dtype == torch.float32 and (narrow - results[0]).abs().max() < 1e-4 * results[0].abs().max()


def test_directions_mirror_each_other() -> None:
    given = parameters(5)
    u = torch.randn(2, 70, 3, dtype=torch.float64)
    for conv in (conv_fft, conv_chunks):
        assert torch.allclose(conv(u.flip(1), given, True).flip(1), conv(u, given, False), atol=1e-12)


@pytest.mark.parametrize("method", ["fft", "chunks"])
def test_gradcheck(method: str) -> None:
    first, second = parameters(2, seed=1), parameters(2, seed=2)
    u, v = (torch.randn(2, 9, 2, dtype=torch.float64, requires_grad=True) for _ in range(2))
    mask = torch.arange(9) >= torch.tensor([[9], [6]])

    def function(u: torch.Tensor, v: torch.Tensor, *rest: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return ssm_conv(u, v, rest[:5], rest[5:], mask, method)

    assert torch.autograd.gradcheck(function, (u, v, *first, *second))
    assert torch.autograd.gradcheck(lambda *p: ssm_kernel(*p, 7), tuple(first[:4]))


@pytest.mark.parametrize("method", ["fft", "chunks"])
@pytest.mark.parametrize("length", [5, 64, 100])
def test_padding_enters_no_state(method: str, length: int) -> None:
    """A sequence alone, and padded to 1.5 and 4 times its length, padding full of garbage."""
    given = parameters(6, torch.float32)
    u = torch.randn(1, length, 8)
    alone = ssm_conv(u, u, given, given, method=method)
    for total in (3 * length // 2, 4 * length):
        padded = torch.full((2, total, 8), 1e4)
        padded[:, :length] = u
        mask = (torch.arange(total) >= length).expand(2, -1)
        for y, expected in zip(ssm_conv(padded, padded, given, given, mask, method), alone, strict=True):
            assert (y[:, :length] - expected).abs().max() < 1e-5 and not y[:, length:].any()


def test_recurrent_form() -> None:
    given = parameters(4)
    u = torch.randn(2, 12, 3, dtype=torch.float64)
    state, outputs = None, []
    for position in range(12):
        y, state = ssm_step(u[:, position], state, given)
        outputs.append(y)
    assert torch.allclose(torch.stack(outputs, 1), conv_fft(u, given), atol=1e-10)


def test_half_precision_computes_in_float32() -> None:
    given = parameters(4, torch.float32)
    u = torch.randn(2, 80, 3)
    for dtype in (torch.bfloat16, torch.float16):
        exact = conv_fft(u.to(dtype).float(), given)
        for conv in (conv_fft, conv_chunks):
            assert torch.equal(conv(u.to(dtype), given), conv(u.to(dtype).float(), given).to(dtype))
            assert (conv(u.to(dtype), given).float() - exact).abs().max() < 2e-2 * exact.abs().max()


def test_gradients_do_not_depend_on_the_number_of_threads() -> None:
    u = torch.randn(3, 150, 200, requires_grad=True)
    given, found = parameters(8, torch.float32), []
    for threads in (1, 2):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        found.append(torch.autograd.grad(conv_chunks(u, given).square().sum(), (u, *given)))
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_operator_contract() -> None:
    for reverse in (False, True):
        chunk = [x.detach().requires_grad_() for x in ssm.chunk_matrices(parameters(3), 8, torch.float64, reverse)]
        u = torch.randn(2, 20, 5, dtype=torch.float64, requires_grad=True)
        torch.library.opcheck(torch.ops.fairseq.ssm_chunks, (u, *chunk, reverse))
        compiled = torch.ops.fairseq.ssm_chunks_backward(torch.ones_like(u), u, *chunk, reverse)
        reference = ssm.chunks_backward_reference(torch.ones_like(u), u, *chunk, reverse)
        assert all(torch.allclose(a, b, atol=1e-10) for a, b in zip(compiled, reference, strict=True))


def test_empty_and_bad_input() -> None:
    given = parameters(3, torch.float32)
    for shape in ((0, 4, 2), (2, 0, 2)):
        assert ssm_conv(torch.ones(shape), torch.ones(shape), given, given)[0].shape == shape
    u = torch.ones(1, 4, 2)
    for u_forward, mask, method, word in (
        (torch.ones(4, 2), None, "auto", "u_forward"),
        (u, torch.ones(1, 3, dtype=torch.bool), "auto", "padding_mask"),
        (u, None, "chunk", "method"),
    ):
        with pytest.raises(ValueError, match=word):
            ssm_conv(u_forward, u, given, given, mask, method)


def test_without_compiled_operators() -> None:
    code = (
        "import sys, pytest; sys.exit(pytest.main(['-q', '-x', '-p', 'no:cacheprovider', sys.argv[1], '-k', 'equal']))"
    )
    if os.environ.get("FAIRSEQ_NATIVE") == "0":
        return
    done = subprocess.run(
        [sys.executable, "-c", code, __file__],
        env={**os.environ, "FAIRSEQ_NATIVE": "0"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
