"""The Adam update: the fused path against its reference implementation, the published check values, layouts and resuming."""

from __future__ import annotations

import copy
import io
from types import SimpleNamespace

import pytest
import torch
from torch.nn import Parameter

from fairseq.errors import CheckpointError, ConfigError
from fairseq.optim import adam_update, build_optimizer
from fairseq.optim.adam import Adam, parse_betas
from fairseq.optim.adam_update import Hyperparameters, Segment, reference_update, update

SHAPES = [(), (1,), (7,), (3, 5), (17, 33), (64, 48), (0,), (5, 1, 3)]


def config(**changes: object) -> SimpleNamespace:
    base = {"_name": "adam", "lr": [0.1], "adam_betas": "(0.9, 0.98)", "adam_eps": 1e-6, "weight_decay": 0.01}
    return SimpleNamespace(**{**base, **changes})


def random_tensors(seed: int, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in SHAPES]


def use_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adam_update, "_kernel_knows", lambda segment: False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("fused", [True, False])
def test_check_values(fused: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    if not fused:
        use_reference(monkeypatch)
    param = Parameter(torch.ones(1, dtype=dtype))
    optimizer = build_optimizer(config(), [param])
    expected = (0.8990014141935626, 0.871391982022984)
    for grad, value in zip((0.5, -0.25), expected, strict=True):
        param.grad = torch.full((1,), grad, dtype=dtype)
        optimizer.step()
        assert param.item() == pytest.approx(value, rel=1e-15 if dtype == torch.float64 else 1e-6)


@pytest.mark.parametrize("corrected_eps", [False, True])
@pytest.mark.parametrize("factor", [1.0, 0.37])
def test_fused_is_as_exact_as_the_reference(
    factor: float, corrected_eps: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = {}
    for name, dtype, fused in (
        ("exact", "float64", False),
        ("reference", "float32", False),
        ("fused", "float32", True),
    ):
        kind = getattr(torch, dtype)
        params = random_tensors(1, kind)
        moments = [[torch.zeros_like(p) for p in params] for _ in range(2)]
        for step in range(1, 12):
            hyper = Hyperparameters(1e-2, (0.9, 0.98), 1e-6, 0.01, step, corrected_eps)
            grads = random_tensors(step + 100, kind)
            segments = [Segment(*columns) for columns in zip(params, grads, *moments, strict=True)]
            with monkeypatch.context() as patched:
                if not fused:
                    use_reference(patched)
                update(segments, hyper, factor)
        results[name] = torch.cat([p.reshape(-1).double() for p in params])
    reference, fused_ = ((results[name] - results["exact"]).abs().max() for name in ("reference", "fused"))
    assert fused_ <= 2 * reference
    assert reference < 1e-5


def test_float32_copies_of_pieces_give_the_bits_of_the_compiled_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    def run() -> list[torch.Tensor]:
        masters = random_tensors(3)
        halves = [m.bfloat16() for m in masters]
        moments = [[torch.zeros_like(p) for p in masters] for _ in range(2)]
        for step in range(1, 4):
            grads = random_tensors(step, torch.bfloat16)
            rows = zip(masters, grads, *moments, halves, strict=True)
            update([Segment(*row) for row in rows], Hyperparameters(1e-2, (0.9, 0.98), 1e-6, 0.01, step), 0.3)
        return masters + halves

    found = run()
    monkeypatch.setattr(adam_update.library, "compiled_for", lambda operator, device: False)
    monkeypatch.setattr(adam_update, "PIECE", 48)
    for operator, copies in zip(found, run(), strict=True):
        assert torch.equal(operator, copies)


def test_transposed_weights_and_gradients() -> None:
    weight = torch.randn(6, 9)
    for param, grad in ((weight.t().clone(), torch.randn(6, 9).t()), (weight.clone().t(), torch.randn(9, 6))):
        moments = [torch.zeros_like(param) for _ in range(2)]
        expected = [param.contiguous().clone(), *(torch.zeros(9, 6) for _ in range(2))]
        hyper = Hyperparameters(1e-2, (0.9, 0.98), 1e-6, 0.01, 1)
        reference_update([expected[0]], [grad.contiguous().clone()], [expected[1]], [expected[2]], hyper, 0.5)
        update([Segment(param, grad, *moments)], hyper, 0.5)
        torch.testing.assert_close(param.contiguous(), expected[0])


def test_half_precision_weights_without_masters() -> None:
    param = Parameter(torch.randn(40, 3).bfloat16())
    before = param.detach().clone()
    optimizer = build_optimizer(config(), [param])
    param.grad = torch.randn_like(param)
    exact = before.float()
    reference_update(
        [exact],
        [param.grad.float()],
        [torch.zeros(40, 3)],
        [torch.zeros(40, 3)],
        Hyperparameters(0.1, (0.9, 0.98), 1e-6, 0.01, 1),
    )
    optimizer.step()
    assert param.dtype == torch.bfloat16
    torch.testing.assert_close(param.float(), exact.bfloat16().float())
    assert optimizer.optimizer.state[param]["exp_avg"].dtype == torch.float32
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert optimizer.optimizer.state[param]["exp_avg"].dtype == torch.float32


def test_state_layout_is_the_originals() -> None:
    params = [Parameter(torch.randn(3, 2)), Parameter(torch.randn(2))]
    optimizer = build_optimizer(config(), params)
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer.step()
    state = optimizer.state_dict()
    assert list(state) == ["state", "param_groups"]
    assert state["param_groups"] == [
        {"lr": 0.1, "betas": (0.9, 0.98), "eps": 1e-6, "weight_decay": 0.01, "amsgrad": False, "params": [0, 1]}
    ]
    assert {key: sorted(entry) for key, entry in state["state"].items()} == {
        0: ["exp_avg", "exp_avg_sq", "step"],
        1: ["exp_avg", "exp_avg_sq", "step"],
    }
    assert type(state["state"][0]["step"]) is int


def test_resuming_is_exact() -> None:
    def train(params: list[Parameter], optimizer: object, steps: range) -> None:
        for step in steps:
            for param, grad in zip(params, random_tensors(step), strict=True):
                param.grad = grad
            optimizer.multiply_grads(0.7)  # type: ignore[attr-defined]
            optimizer.clip_grad_norm(1.0)  # type: ignore[attr-defined]
            optimizer.step()  # type: ignore[attr-defined]

    through = [Parameter(t) for t in random_tensors(0)]
    optimizer = build_optimizer(config(), through)
    train(through, optimizer, range(3))
    buffer = io.BytesIO()
    torch.save((optimizer.state_dict(), through), buffer)
    train(through, optimizer, range(3, 6))

    buffer.seek(0)
    state, resumed = torch.load(buffer, weights_only=True)
    other = build_optimizer(config(), resumed)
    other.load_state_dict(state)
    train(resumed, other, range(3, 6))
    for a, b in zip(through, resumed, strict=True):
        assert torch.equal(a, b)


def test_parameters_without_gradient_are_left_alone() -> None:
    used, unused = Parameter(torch.ones(3)), Parameter(torch.ones(3))
    optimizer = build_optimizer(config(), [used, unused])
    for late in (False, True):
        used.grad = torch.ones(3)
        unused.grad = torch.ones(3) if late else None
        optimizer.step()
        if not late:
            assert torch.equal(unused, torch.ones(3)) and list(optimizer.state_dict()["state"]) == [0]
    steps = {key: entry["step"] for key, entry in optimizer.state_dict()["state"].items()}
    assert steps == {0: 2, 1: 1}
    assert unused[0].item() == pytest.approx(1 - 0.1 * 0.01 - 0.1, rel=1e-3)


def test_scaling_and_clipping_equal_explicit_multiplications() -> None:
    plain, deferred = ([Parameter(t) for t in random_tensors(5)] for _ in range(2))
    for params in (plain, deferred):
        for param, grad in zip(params, random_tensors(6), strict=True):
            param.grad = grad
    for param in plain:
        param.grad *= 0.25
    norm = torch.nn.utils.clip_grad_norm_(plain, 0.5)
    Adam(plain, lr=0.1, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.01).step()

    optimizer = build_optimizer(config(), deferred)
    optimizer.multiply_grads(torch.tensor(0.25))
    assert optimizer.clip_grad_norm(0.5).item() == pytest.approx(norm.item(), rel=1e-6)
    optimizer.step()
    for a, b in zip(plain, deferred, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
    # The factor belongs to one update.
    deferred[3].grad = torch.ones(3, 5)
    assert optimizer.clip_grad_norm(0.0).item() > 3.8


def test_other_layouts_load() -> None:
    entry = {"exp_avg": torch.ones(2), "exp_avg_sq": torch.ones(2)}
    group = {"lr": 0.3, "betas": [0.5, 0.6], "eps": 1e-3, "weight_decay": 0.2, "params": [0]}
    in_group = {"state": {0: entry}, "param_groups": [{**group, "step": 7, "bias_correction": True}]}
    torchs = {"state": {0: {**entry, "step": torch.tensor(7.0)}}, "param_groups": [{**group, "fused": None}]}
    for state in (in_group, torchs):
        optimizer = build_optimizer(config(), [Parameter(torch.zeros(2))])
        optimizer.load_state_dict(state, {"lr": 0.5})
        saved = optimizer.state_dict()
        assert saved["state"][0]["step"] == 7
        assert saved["param_groups"] == [
            {"lr": 0.5, "betas": (0.5, 0.6), "eps": 1e-3, "weight_decay": 0.2, "params": [0], "amsgrad": False}
        ]


def test_one_flat_vector_and_one_entry_per_parameter_convert() -> None:
    params = [Parameter(torch.zeros(2, 3)), Parameter(torch.zeros(4))]
    group = {"lr": 0.1, "betas": (0.9, 0.98), "eps": 1e-6, "weight_decay": 0.0, "amsgrad": False, "params": [0]}
    flat = {"step": 3, "exp_avg": torch.arange(10.0), "exp_avg_sq": torch.arange(10.0) + 10}
    split = build_optimizer(config(), params)
    split.load_state_dict({"state": {0: flat}, "param_groups": [group], "loss_scale": 4.0})
    assert torch.equal(split.state_dict()["state"][1]["exp_avg"], torch.arange(6.0, 10.0))
    assert torch.equal(split.state_dict()["state"][0]["exp_avg_sq"], torch.arange(10.0, 16.0).view(2, 3))
    joined = build_optimizer(config(), [Parameter(torch.zeros(10))])
    joined.load_state_dict(split.state_dict())
    assert torch.equal(joined.state_dict()["state"][0]["exp_avg"], flat["exp_avg"])
    assert joined.state_dict()["state"][0]["step"] == 3


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"state": {}, "param_groups": [{"params": [0, 1, 2]}]},
        {"state": {0: {"exp_avg": torch.zeros(4), "exp_avg_sq": torch.zeros(4)}}, "param_groups": [{"params": [0]}]},
        {"state": {0: {"momentum_buffer": torch.zeros(2)}}, "param_groups": [{"params": [0, 1]}]},
        {"state": {0: {"exp_avg": torch.zeros(9)}}, "param_groups": [{"params": [0, 1]}]},
        {"state": {}, "param_groups": [{"params": [0, 1], "amsgrad": True}]},
    ],
)
def test_foreign_states_are_refused(state: dict) -> None:
    optimizer = build_optimizer(config(), [Parameter(torch.zeros(2)), Parameter(torch.zeros(3))])
    with pytest.raises(CheckpointError, match="reset-optimizer"):
        optimizer.load_state_dict(state)


def test_betas() -> None:
    assert parse_betas("(0.9,0.98)") == parse_betas([0.9, 0.98]) == (0.9, 0.98)
    for bad in ("__import__('os')", "(0.9,)", "0.9", "(0.9, 1.0)", None, "(0.9, 'x')"):
        with pytest.raises(ConfigError, match="adam_betas"):
            parse_betas(bad)
    with pytest.raises(ConfigError, match="fp16_adam_stats"):
        build_optimizer(config(fp16_adam_stats=True), [Parameter(torch.zeros(1))])
