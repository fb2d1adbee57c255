"""Attention backends: all of them against eager, the automatic choice, the check before trust, and memory."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fairseq.errors import ConfigError
from fairseq.modules import attention_backends as backends
from fairseq.modules.attention_backends import BACKENDS, Terms, attend, attend_eager, choose_backend, works_like_eager
from fairseq.modules.attention_bias import ALiBi
from fairseq.ops import library

SHAPES = [(1, 1, 1, 1), (2, 3, 7, 5), (3, 4, 33, 8), (2, 12, 18, 16)]


class Given:
    """A bias that is not ALiBi."""

    def dense(self, tokens, device="cpu", dtype=torch.float32):
        return torch.sin(torch.arange(tokens * tokens, device=device)).view(1, tokens, tokens).to(dtype)


def problem(shape, bias, padded, dtype=torch.float64):
    batch, heads, tokens, width = shape
    q, k, v = (torch.randn(batch, tokens, heads, width, dtype=dtype).transpose(1, 2) for _ in range(3))
    padding = torch.zeros(batch, tokens, dtype=torch.bool)
    padding[0, tokens - tokens // 3 :] = True
    padding[-1] = batch > 1  # nothing but padding
    kinds = {None: None, "alibi": ALiBi(heads, asymmetrical=True), "given": Given()}
    return q, k, v, {"padding": padding if padded else None, "bias": kinds[bias]}


@pytest.mark.parametrize("name", [*BACKENDS, "auto"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bias", [None, "alibi", "given"])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.filterwarnings("ignore:.*flex_attention called without torch.compile")
def test_backends_equal_eager(name, shape, bias, padded):
    q, k, v, extra = problem(shape, bias, padded)
    if name in ("fused", "triton") and bias == "given":
        with pytest.raises(ConfigError, match=f"'{name}' knows no bias but ALiBi, and this is Given"):
            attend(q, k, v, **extra, backend=name)
        return
    results = []
    upstream = torch.randn_like(q)
    for backend in (name, "eager"):
        leaves = [x.clone().requires_grad_(name != "flex") for x in (q, k, v)]  # flex has no gradient on the CPU
        out = attend(*leaves, **extra, backend=backend)
        results.append([out.detach(), *(() if name == "flex" else torch.autograd.grad(out, leaves, upstream))])
    torch.testing.assert_close(results[0], results[1], atol=1e-6, rtol=1e-5)  # slopes are float32
    if padded and shape[0] > 1:
        assert not results[0][0][-1].any()


@pytest.mark.parametrize("name", ["sdpa", "fused", "triton", "auto"])
@pytest.mark.parametrize("bias", [None, "alibi"])
@pytest.mark.parametrize("on_device", [False, True])
def test_packed_sequences_equal_eager(name, bias, on_device):
    lengths = (5, 1, 12)
    q, k, v, extra = problem((1, 3, sum(lengths), 8), bias, False)
    starts = torch.tensor([0, 5, 6, 18], dtype=torch.int32) if on_device else None
    found, wanted = (
        attend(q, k, v, bias=extra["bias"], lengths=lengths, starts=starts, backend=backend)
        for backend in (name, "eager")
    )
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-5)


def test_triton_takes_padding_at_the_end_only():
    q, k, v, _ = problem(SHAPES[1], None, False)
    padding = torch.zeros(2, 7, dtype=torch.bool)
    padding[1, 3] = True
    with pytest.raises(ConfigError, match="'triton' takes padding at the end of sequences only"):
        attend(q, k, v, padding=padding, backend="triton")


@pytest.mark.parametrize("name", ["eager", "sdpa", "fused", "triton", "auto"])
@pytest.mark.parametrize("bias", [None, "alibi"])
def test_dropout_is_right_on_average(name, bias):
    q, k, v, extra = problem((2, 2, 5, 4), bias, True, torch.float32)
    exact = attend_eager(q, k, v, Terms(**extra), 0.0)
    torch.manual_seed(5)
    first = attend(q, k, v, **extra, dropout=0.3, backend=name)
    torch.manual_seed(5)
    assert torch.equal(first, attend(q, k, v, **extra, dropout=0.3, backend=name))
    assert not torch.equal(first, attend(q, k, v, **extra, dropout=0.3, backend=name))
    mean = torch.stack([attend(q, k, v, **extra, dropout=0.3, backend=name) for _ in range(1500)]).mean(0)
    assert float((mean - exact).abs().max()) < 0.12


def test_names():
    assert backends.check_backend("auto") == "auto"
    with pytest.raises(
        ConfigError, match=r"unknown attention backend 'fusd'; did you mean 'fused'\? Known: auto, eager"
    ):
        attend(*problem(SHAPES[1], None, False)[:3], backend="fusd")
    with pytest.raises(ConfigError, match="'flex' has no dropout: set attention_dropout to 0"):
        attend(*problem(SHAPES[1], "alibi", False)[:3], dropout=0.1, backend="flex")


def test_automatic_choice_on_the_cpu(monkeypatch):
    def chosen(bias, dropout, dtype=torch.float32):
        q, _, _, extra = problem(SHAPES[1], bias, True, dtype)
        return choose_backend(q, extra["bias"], dropout)

    monkeypatch.setattr(library, "compiled_for", lambda operator, device: device == "cpu")
    assert [chosen(None, 0.0), chosen(None, 0.1)] == ["sdpa", "fused"]
    assert chosen(None, 0.0, torch.bfloat16) == "fused"
    assert [chosen("alibi", 0.0), chosen("alibi", 0.1), chosen("given", 0.1)] == ["fused", "fused", "sdpa"]
    monkeypatch.setattr(library, "compiled_for", lambda operator, device: False)
    assert [chosen("alibi", 0.0), chosen(None, 0.1)] == ["sdpa", "sdpa"]


class OnCuda:
    device, dtype = torch.device("cuda:1"), torch.bfloat16


def test_automatic_choice_on_cuda_trusts_only_what_was_checked(monkeypatch):
    def chosen(bias, dropout, **known):
        return choose_backend(OnCuda, bias, dropout, **known)

    bias = ALiBi(2)
    working: set[str] = set()
    asked = []
    monkeypatch.setattr(library, "compiled_for", lambda operator, device: True)
    monkeypatch.setattr(backends.flash, "runs", lambda q: True)
    monkeypatch.setattr(backends, "works_like_eager", lambda name, *of: asked.append((name, *of)) or name in working)
    assert chosen(None, 0.1) == "sdpa" and not asked
    assert chosen(bias, 0.0, lengths_known=True) == "sdpa"
    assert asked == [(name, "cuda:1", torch.bfloat16) for name in ("triton", "flex", "fused")]
    working.add("fused")
    assert [chosen(bias, 0.0), chosen(bias, 0.1)] == ["fused", "fused"]
    working.add("flex")
    assert [chosen(bias, 0.0), chosen(bias, 0.1)] == ["flex", "fused"]
    working.add("triton")
    assert [chosen(bias, p, lengths_known=True) for p in (0.0, 0.1)] == ["triton", "triton"]
    assert [chosen(bias, 0.0), chosen(Given(), 0.1, lengths_known=True)] == ["flex", "sdpa"]
    assert [chosen(None, p, lengths_known=True) for p in (0.0, 0.1)] == ["sdpa", "triton"]
    assert chosen(None, 0.0, lengths_known=True, packed=True) == "triton"
    monkeypatch.setattr(backends.flash, "runs", lambda q: False)
    assert chosen(bias, 0.1, lengths_known=True) == "fused"


def test_automatic_choice_knows_whether_lengths_are_known(monkeypatch):
    known = []
    monkeypatch.setattr(
        backends, "choose_backend", lambda *_, packed, lengths_known: known.append((packed, lengths_known)) or "eager"
    )
    q, k, v, extra = problem(SHAPES[1], None, True)
    counts = torch.tensor([5, 0], dtype=torch.int32)
    starts = torch.tensor([0, 3, 7], dtype=torch.int32)
    attend(q, k, v)
    attend(q, k, v, **extra)
    attend(q, k, v, **extra, token_counts=counts)
    attend(q[:1], k[:1], v[:1], lengths=(3, 4))
    attend(q[:1], k[:1], v[:1], lengths=(3, 4), starts=starts)
    assert known == [(False, True), (False, False), (False, True), (True, False), (True, True)]


@pytest.fixture
def fresh_check():
    backends._tried.cache_clear()
    yield
    backends._tried.cache_clear()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_right_backends_pass_the_check(dtype, fresh_check):
    assert all(works_like_eager(name, "cpu", dtype) for name in ("sdpa", "fused", "triton"))
    assert backends._tried.cache_info().currsize == 3
    assert works_like_eager("fused", "cpu", dtype) and backends._tried.cache_info().currsize == 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_check_finds_what_is_a_little_wrong(dtype, monkeypatch, fresh_check):
    """In bfloat16 a forgotten half step shows by 7 units in the last place, a right backend's rounding by one."""

    def symmetrical(q, k, v, terms, dropout):
        return backends.attend_fused(q, k, v, replace(terms, bias=ALiBi(3)), dropout)

    def another_mask(q, k, v, terms, dropout):
        return backends.attend_fused(q, k, v, replace(terms, seed=terms.seed + 1), dropout)

    def another_padding(q, k, v, terms, dropout):
        return backends.attend_fused(q, k, v, replace(terms, padding=terms.padding.roll(1, 1)), dropout)

    for wrong in (symmetrical, another_mask, another_padding):
        backends._tried.cache_clear()
        monkeypatch.setitem(BACKENDS, "fused", wrong)
        with pytest.warns(UserWarning, match="'fused' is not used: it differs from eager by"):
            assert not works_like_eager("fused", "cpu", dtype), wrong.__name__


def test_check_says_once_why_a_backend_is_not_used(monkeypatch, fresh_check):
    monkeypatch.setitem(BACKENDS, "wrong", lambda *given: attend_eager(*given) * 1.01)
    monkeypatch.setitem(BACKENDS, "nan", lambda q, k, v, *_: q + k * v + torch.nan)
    monkeypatch.setitem(BACKENDS, "broken", lambda *_: 1 / 0)
    for name, message in (("wrong", "differs from eager"), ("nan", "differs"), ("broken", "fails here .*division")):
        with pytest.warns(UserWarning, match=message):
            assert not works_like_eager(name, "cpu", torch.float32)
        assert not works_like_eager(name, "cpu", torch.float32)


def test_check_leaves_random_numbers_alone(fresh_check):
    state = torch.get_rng_state()
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert works_like_eager("fused", "cpu", torch.float32)
    assert torch.equal(state, torch.get_rng_state())


def test_no_bias_grows_with_the_batch():
    """The largest tensor that sdpa and fused get or make beyond those of (B, H, T, D) is (1, H, T, T)."""
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    batch, heads, tokens = 6, 2, 24
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            out = function(*args, **(kwargs or {}))
            storages = [
                x.untyped_storage().nbytes() for x in tree_leaves((args, kwargs, out)) if isinstance(x, torch.Tensor)
            ]
            largest = max(largest, *storages, 0)
            return out

    for name in ("sdpa", "fused"):
        q, k, v, extra = problem((batch, heads, tokens, 2), "alibi", True, torch.float32)
        with Watch(), torch.no_grad():
            attend(q, k, v, **extra, backend=name)
        assert largest < 4 * batch * heads * tokens * tokens, name


@pytest.mark.parametrize("name", ["sdpa", "fused", "triton", "auto"])
def test_compiled_graph(name):
    q, k, v, extra = problem(SHAPES[1], "alibi", True, torch.float32)
    counts = (~extra["padding"]).sum(1, dtype=torch.int32)
    torch._dynamo.reset()

    def function(q, k, v):
        return attend(q, k, v, bias=ALiBi(3), padding=extra["padding"], token_counts=counts, backend=name)

    quick = torch.compile(function, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(quick(q, k, v), function(q, k, v))


@pytest.mark.slow
def test_flex_compiled_on_the_cpu():
    from torch.nn.attention import flex_attention as flex

    q, k, v, extra = problem((2, 4, 40, 16), "alibi", True, torch.float32)
    torch._dynamo.reset()
    original = backends._flex_attention
    backends._flex_attention = lambda compiled: torch.compile(flex.flex_attention, fullgraph=True)
    try:
        with torch.no_grad():
            torch.testing.assert_close(
                attend(q, k, v, **extra, backend="flex"), attend(q, k, v, **extra, backend="eager")
            )
    finally:
        backends._flex_attention = original


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["sdpa", "flex", "fused", "triton"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_backends_on_a_device(name, dtype, device):
    assert works_like_eager(name, device, dtype)
