"""Convolutions of diagonal state-space models (BiGS, Wang et al., 2022; S4D, Gu et al., 2022), linear in length.

A direction has N complex modes, shared by all channels: poles lambda = min(A_re, -1e-4) + i A_im, weights c = C[:, 0] +
i C[:, 1], a step Delta = exp(log_step) and a skip D. Held over a step (zero-order hold, input matrix 1),

    K[l] = Re sum_n c_n (exp(Delta lambda_n) - 1) / lambda_n exp(l Delta lambda_n)
    y[t] = sum_{j <= t} K[j] u[t - j] + D u[t]

and for the backward direction the same with the sequence read from its end. There are two ways to it:

- ``fft``: products of Fourier transforms of length 2 L.
- ``chunks``: within Q positions a product with the Toeplitz matrix of K, between them the N-mode state, which a chunk
  takes over, reads (``out``), and adds its inputs to (``into``). The same cost per token at any length, no transforms,
  no copies of the sequence. Kernels: ``fairseq/csrc/torch/ssm_cpu.cpp``, ``fairseq/ops/triton/ssm_kernels.py``.

Chunk matrices and kernels are computed in float64 and rounded once. Sequences are (B, L, C); where ``u`` is in half precision,
everything inside is float32, but for the operands of products on a GPU.

Legend: B sequences, L positions, C channels, N modes, Q positions of a chunk, M chunks.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fairseq.ops import library
from fairseq.ops.self_check import Source

METHODS = ("auto", "fft", "chunks")
CLIP = -1e-4  # the largest real part of a pole


class SSM(NamedTuple):
    """The parameters of one direction."""

    A_re: Tensor  # (N,)
    A_im: Tensor  # (N,)
    C: Tensor  # (N, 2): real and imaginary part
    log_step: Tensor  # (1,)
    D: Tensor  # (1,)


Parameters = SSM | Sequence[Tensor] | Mapping[str, Tensor]


def ssm_kernel(A_re: Tensor, A_im: Tensor, C: Tensor, log_step: Tensor, length: int) -> Tensor:
    """K[0 .. length - 1], of the type of the parameters."""
    exponent, weight = _modes(A_re, A_im, C, log_step)
    # exp(l x) for l = a P + b is exp(a P x) exp(b x): a product of two small matrices instead of N x length exponentials.
    period = max(int(length**0.5), 1)
    high = _powers(exponent * period, -(-length // period))
    low = _powers(exponent, period)
    return ((weight * high) @ low.T).real.flatten()[:length].to(A_re.dtype)


def ssm_conv(
    u_forward: Tensor,
    u_backward: Tensor,
    ssm_forward: Parameters,
    ssm_backward: Parameters,
    padding_mask: Tensor | None = None,
    method: str = "auto",
) -> tuple[Tensor, Tensor]:
    """The convolutions of both directions: u (B, L, C) each, and y of the same shapes, in the order of the sequence.

    With ``padding_mask`` (B, L), True = padding, padded positions enter no state: y at the other positions does not
    depend on how many of them there are, and is 0 at padding.
    """
    for name, u in (("u_forward", u_forward), ("u_backward", u_backward)):
        if u.dim() != 3 or not u.is_floating_point():
            raise ValueError(f"`{name}` must be (B, L, C) of floating-point numbers, but is {u.dtype} {tuple(u.shape)}")
    if padding_mask is not None and padding_mask.shape != u_forward.shape[:2]:
        raise ValueError(
            f"`padding_mask` must be {tuple(u_forward.shape[:2])}, but is {tuple(padding_mask.shape)} instead"
        )
    if method not in METHODS:
        raise ValueError(f"`method` must be one of {', '.join(METHODS)}, but is {method!r} instead")
    mask = None if padding_mask is None else padding_mask[..., None]
    with torch.autocast(u_forward.device.type, enabled=False):  # states grow over thousands of positions
        return (
            _masked_conv(u_forward, _named(ssm_forward), mask, method, reverse=False),
            _masked_conv(u_backward, _named(ssm_backward), mask, method, reverse=True),
        )


def ssm_step(u: Tensor, state: Tensor | None, ssm: Parameters) -> tuple[Tensor, Tensor]:
    """One position of the recurrent form: u (B, C) and the state (B, N, C), complex, None = 0, to (y, new state)."""
    named = _named(ssm)
    wide = torch.promote_types(u.dtype, torch.float32)
    exponent, weight = _modes(*named[:4])
    kind = torch.complex128 if wide == torch.float64 else torch.complex64
    taken = u.to(wide)[:, None, :].to(kind)
    kept = taken if state is None else state * exponent.exp().to(kind)[:, None] + taken
    y = torch.einsum("n,bnc->bc", weight.to(kind), kept).real + named.D.to(wide) * u.to(wide)
    return y.to(u.dtype), kept


def choose_method(u: Tensor) -> str:
    """The way that ``auto`` stands for: chunks where they have a kernel, and where the sequence fits into one."""
    if u.size(1) <= chunk_length(u) or library.compiled_for("ssm_chunks", u.device.type):
        return "chunks"
    return "chunks" if u.device.type == "cuda" else "fft"


def chunk_length(u: Tensor) -> int:
    """Q: by device alone, so that results do not depend on the length of a batch."""
    return 64 if u.device.type == "cpu" else 128


def _named(ssm: Parameters) -> SSM:
    if isinstance(ssm, Mapping):
        return SSM(**{name: ssm[name] for name in SSM._fields})
    if isinstance(ssm, SSM):
        return ssm
    A_re, A_im, C, log_step, D = ssm
    return SSM(A_re, A_im, C, log_step, D)


def _masked_conv(u: Tensor, ssm: SSM, mask: Tensor | None, method: str, reverse: bool) -> Tensor:
    if u.numel() == 0:
        return u.clone()
    if mask is not None:
        u = u.masked_fill(mask, 0)
    conv = conv_fft if (choose_method(u) if method == "auto" else method) == "fft" else conv_chunks
    y = conv(u, ssm, reverse)
    return y if mask is None else y.masked_fill(mask, 0)


def _modes(A_re: Tensor, A_im: Tensor, C: Tensor, log_step: Tensor) -> tuple[Tensor, Tensor]:
    """Delta lambda and c (exp(Delta lambda) - 1) / lambda, (N,) complex128.

    With expm1, which does not cancel for short steps of slow modes; the original subtracts 1, and errs by a percent there.
    """
    re, im = A_re.double().clamp(max=CLIP), A_im.double()
    step = log_step.double().exp()
    a, b = step * re, step * im
    grown = torch.expm1(a)
    # exp(a + ib) - 1, in real numbers; 1 - cos b = 2 sin(b / 2)^2
    minus_one = torch.complex(grown * torch.cos(b) - 2 * torch.sin(b / 2) ** 2, (grown + 1) * torch.sin(b))
    weight = torch.complex(C[:, 0].double(), C[:, 1].double())
    return torch.complex(a, b), weight * minus_one / torch.complex(re, im)


def _powers(exponent: Tensor, count: int) -> Tensor:
    """exp(l x), (count, N), for l from 0."""
    return torch.exp(torch.arange(count, device=exponent.device)[:, None] * exponent)


# ---------------------------------------------------------------------------------------------------------------- FFT


def conv_fft(u: Tensor, ssm: SSM, reverse: bool = False) -> Tensor:
    """The reference implementation: u (B, L, C), against the direction of the sequence with ``reverse``."""
    wide = torch.promote_types(u.dtype, torch.float32)
    length = u.size(1)
    spectrum = torch.fft.rfft(ssm_kernel(*ssm[:4], length).to(wide), n=2 * length)[:, None]
    # Reading from the end is the adjoint, whose spectrum is the conjugate.
    spectrum = spectrum.conj() if reverse else spectrum
    x = u.to(wide)
    y = torch.fft.irfft(torch.fft.rfft(x, n=2 * length, dim=1) * spectrum, n=2 * length, dim=1)[:, :length]
    return (y + ssm.D.to(wide) * x).to(u.dtype)


# ------------------------------------------------------------------------------------------------------------- chunks


class Chunk(NamedTuple):
    """The matrices of a chunk, in real numbers: states have their N real parts first, then their N imaginary parts."""

    within: Tensor  # (Q, Q): outputs of the inputs of the same chunk
    into: Tensor  # (2N, Q): what inputs add to the state
    out: Tensor  # (Q, 2N): outputs of the state that is taken over
    turn: Tensor  # (2, N): the state's factor from chunk to chunk, real and imaginary part


def chunk_matrices(ssm: SSM, length: int, dtype: torch.dtype, reverse: bool) -> Chunk:
    """For chunks of ``length`` positions; computed in float64, and rounded to ``dtype``."""
    exponent, weight = _modes(*ssm[:4])
    powers = _powers(exponent, length + 1)  # (Q + 1, N)
    kernel = (powers[:-1] @ weight).real
    places = torch.arange(length, device=kernel.device)
    lag = places[:, None] - places
    within = torch.where(lag >= 0, kernel[lag.clamp(min=0)], 0.0) + torch.diag(ssm.D.double().expand(length))
    into, out = powers[:-1].flip(0).T, powers[1:] * weight
    if reverse:
        within, into, out = within.T, into.flip(1), out.flip(0)
    matrices = (
        within,
        torch.cat([into.real, into.imag]),
        torch.cat([out.real, -out.imag], dim=1),
        torch.view_as_real(powers[-1]).T,
    )
    return Chunk(*(x.to(dtype).contiguous() for x in matrices))


def conv_chunks(u: Tensor, ssm: SSM, reverse: bool = False, length: int | None = None) -> Tensor:
    """The same as `conv_fft`, by chunks of ``length`` (default: `chunk_length`)."""
    wide = torch.promote_types(u.dtype, torch.float32)
    chunk = chunk_matrices(ssm, length or chunk_length(u), wide, reverse)
    return torch.ops.fairseq.ssm_chunks.default(u, *chunk, reverse)


def chunks_reference(u: Tensor, within: Tensor, into: Tensor, out: Tensor, turn: Tensor, reverse: bool) -> Tensor:
    """``u`` (B, L, C) through chunks from the first to the last, or from the last to the first; differentiable."""
    x = _cut(u.to(within.dtype), len(within))
    states = _states(torch.matmul(into, x), turn, reverse)
    y = torch.matmul(within, x) + torch.matmul(out, states)
    return y.flatten(1, 2)[:, : u.size(1)].to(u.dtype).contiguous()


def chunks_backward_reference(
    grad: Tensor, u: Tensor, within: Tensor, into: Tensor, out: Tensor, turn: Tensor, reverse: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of u and of the four matrices for the gradient of the output."""
    wide = within.dtype
    x, up = _cut(u.to(wide), len(within)), _cut(grad.to(wide), len(within))
    states = _states(torch.matmul(into, x), turn, reverse)
    # Gradients travel the other way, with the conjugate factor.
    conjugate = torch.stack([turn[0], -turn[1]])
    added = _states(torch.matmul(out.T, up), conjugate, not reverse)
    du = torch.matmul(within.T, up) + torch.matmul(into.T, added)
    dinto, dout = torch.einsum("bmnc,bmqc->nq", added, x), torch.einsum("bmqc,bmnc->qn", up, states)
    re, im = states.chunk(2, dim=2)
    dre, dim = added.chunk(2, dim=2)
    dturn = torch.stack([(dre * re + dim * im).sum((0, 1, 3)), (dim * re - dre * im).sum((0, 1, 3))])
    du = du.flatten(1, 2)[:, : u.size(1)].to(u.dtype).contiguous()
    return du, torch.einsum("bmqc,bmpc->qp", up, x), dinto, dout, dturn


def _cut(x: Tensor, length: int) -> Tensor:
    """(B, L, C) as (B, M, Q, C), with zeros at the end."""
    missing = -x.size(1) % length
    return torch.nn.functional.pad(x, (0, 0, 0, missing)).unflatten(1, (-1, length))


def _states(added: Tensor, turn: Tensor, reverse: bool) -> Tensor:
    """The state before each chunk, (B, M, 2N, C), from what each chunk adds to it."""
    re, im = (part.unbind(1) for part in added.chunk(2, dim=2))  # M of (B, N, C)
    by_re, by_im = turn[0, :, None], turn[1, :, None]
    a, b = torch.zeros_like(re[0]), torch.zeros_like(im[0])
    before = []
    order = range(len(re))
    for chunk in reversed(order) if reverse else order:
        before.append(torch.cat([a, b], dim=1))
        a, b = by_re * a - by_im * b + re[chunk], by_re * b + by_im * a + im[chunk]
    return torch.stack(before[::-1] if reverse else before, dim=1)


_Gradients = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def _fake(u: Tensor, within: Tensor, into: Tensor, out: Tensor, turn: Tensor, reverse: bool) -> Tensor:
    return torch.empty_like(u, memory_format=torch.contiguous_format)


def _backward_fake(grad: Tensor, u: Tensor, *rest: Any) -> _Gradients:
    matrices = (x for x in rest if isinstance(x, Tensor))
    du, dwithin, dinto, dout, dturn = (
        torch.empty_like(x, memory_format=torch.contiguous_format) for x in (u, *matrices)
    )
    return du, dwithin, dinto, dout, dturn


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.reverse = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors
    return (*torch.ops.fairseq.ssm_chunks_backward.default(grad, *saved, ctx.reverse), None)


_CHUNK = "Tensor u, Tensor within, Tensor into, Tensor out, Tensor turn, bool reverse"
library.define(f"ssm_chunks({_CHUNK}) -> Tensor", chunks_reference, _fake)
library.define(
    f"ssm_chunks_backward(Tensor grad, {_CHUNK}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    chunks_backward_reference,
    _backward_fake,
)
SOURCE = Source(
    lambda: importlib.import_module("fairseq.ops.triton.ssm_kernels"),
    {"ssm_chunks": chunks_reference, "ssm_chunks_backward": chunks_backward_reference},
    products=True,
)
library.define_on_cuda(SOURCE)
torch.library.register_autograd("fairseq::ssm_chunks", _backward, setup_context=_keep_for_backward)
library.load()
