"""The token mixer bigs: first values, precision, options, refusals."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from fairseq.errors import ConfigError
from fairseq.modules.bigs import BiGS, StateSpace, bigs, initial_frequencies
from fairseq.modules.slots import EncoderContext, EncoderShape
from tests.common import ROOT
from tests.unit.roberta import small_model

SHAPE = EncoderShape(dim=12, heads=3, ffn_dim=20, layers=1, max_positions=16, padding_idx=1)
GOLDEN = load_file(ROOT / "tests" / "data" / "bigs" / "ssm.safetensors")


@pytest.mark.parametrize("modes", [4, 16, 64])
def test_hippo_spectrum(modes: int) -> None:
    assert torch.allclose(initial_frequencies(modes, "hippo"), GOLDEN[f"hippo.N{modes}"], rtol=1e-12, atol=1e-12)


def test_other_spectra() -> None:
    assert torch.allclose(initial_frequencies(3, "lin"), torch.pi * torch.arange(3.0, dtype=torch.float64))
    inverse = initial_frequencies(64, "inv")
    assert float(inverse[0]) == pytest.approx(1283.4254, abs=1e-3)
    assert float(inverse[-1]) == pytest.approx(-10.1057, abs=1e-3)


def test_first_values() -> None:
    torch.manual_seed(1)
    drawn = StateSpace(4096, "lin")
    assert (drawn.A_re == -0.5).all() and drawn.D.item() == 1.0
    assert float(drawn.C.detach().std()) == pytest.approx(0.5**0.5, rel=0.03)
    steps = torch.stack([StateSpace(1).log_step.detach() for _ in range(300)])
    assert float(steps.min()) > -4.606 and float(steps.max()) < 0 and abs(float(steps.mean()) + 2.303) < 0.3


@pytest.mark.parametrize("convert", [torch.nn.Module.half, torch.nn.Module.bfloat16])
def test_state_space_parameters_stay_float32(convert: object) -> None:
    mixer = convert(bigs(SHAPE, num_ssm=4))  # type: ignore[operator]
    kinds = {name: p.dtype for name, p in mixer.named_parameters()}
    assert all((kind == torch.float32) == ("ssm" in name) for name, kind in kinds.items())
    assert all(p.dtype == torch.float64 for p in mixer.double().parameters())
    assert {p.dtype for p in convert(mixer).forward_ssm.parameters()} == {torch.float32}  # type: ignore[operator]


def test_packed_equals_padded() -> None:
    mixer, lengths = bigs(SHAPE, num_ssm=4).double(), (7, 1, 4)
    x = torch.randn(3, 7, 12, dtype=torch.float64)
    padding = torch.arange(7) >= torch.tensor(lengths)[:, None]
    padded = mixer(x, EncoderContext(padding))
    packed = mixer(x[~padding][None], EncoderContext(lengths=lengths))
    assert torch.allclose(packed[0], padded[~padding], atol=1e-12)


def test_leak_reads_padding_and_masked_does_not() -> None:
    x = torch.randn(1, 9, 12)
    padding = (torch.arange(9) >= 6)[None]
    other = torch.where(padding[..., None], 100.0, x)
    for mode in ("masked", "leak"):
        mixer = bigs(SHAPE, num_ssm=4, padding=mode)
        a, b = (mixer(y, EncoderContext(padding))[:, :6] for y in (x, other))
        assert torch.equal(a, b) == (mode == "masked")


def test_tags_of_the_textbook_recipe() -> None:
    mixer = bigs(SHAPE, ssm_lr_scale=0.1, ssm_weight_decay=False)
    for name, parameter in mixer.named_parameters():
        assert getattr(parameter, "lr_scale", 1.0) == (0.1 if "ssm" in name else 1.0)
        assert getattr(parameter, "no_decay", False) == ("ssm" in name)
    assert not any(hasattr(p, "lr_scale") for p in bigs(SHAPE).parameters())


def test_an_attention_bias_is_refused() -> None:
    with pytest.raises(ConfigError, match="attention bias"):
        bigs(SHAPE, attention_bias=object())


def test_exact_and_tanh_activation_differ() -> None:
    x, results = torch.randn(1, 5, 12), []
    for name in ("gelu", "gelu_accurate"):
        torch.manual_seed(0)
        results.append(BiGS(12, 20, modes=4, activation=name)(x, EncoderContext()))
    assert 0 < (results[0] - results[1]).abs().max() < 1e-2


SMALL = {"encoder_layers": 2, "encoder_ffn_embed_dim": 20, "bigs_num_ssm": 4, "dropout": 0.0}


def test_width_and_heads_need_not_fit() -> None:
    model = small_model("roberta_bigs", **SMALL, encoder_embed_dim=10, encoder_attention_heads=4)
    assert torch.isfinite(model(torch.tensor([[0, 5, 6, 2]]))[0]).all()
    encoder = model.encoder.sentence_encoder
    assert encoder.layer_norm is None and all(layer.dropout == 0.0 for layer in encoder.layers)


@pytest.mark.parametrize("padding", ["masked", "leak"])
def test_with_the_clap_head_and_zero_masking(padding: str) -> None:
    model = small_model(
        "roberta_bigs", **SMALL, lm_head="clap", zero_masking=True, bigs_padding=padding, layernorm_embedding=False
    )
    with torch.no_grad():  # with fresh weights what leaks is below rounding
        for name, parameter in model.named_parameters():
            parameter.mul_(30.0 if "proj" in name else 1.0)
    ids = torch.tensor([[0, 5, 31, 6, 2], [0, 31, 2, 1, 1]])  # 31: beyond the dictionary, a mask
    where = ids.eq(31)
    loss = model(ids, masked_tokens=where, masked_targets=torch.tensor([7, 8]))[0]
    loss.backward()
    assert torch.isfinite(loss) and all(p.grad is not None for p in model.parameters())
    model.eval()
    with torch.no_grad():
        alone, together = model(ids[1:, :3])[0], model(ids)[0][1:, :3]
    assert torch.allclose(alone, together, atol=1e-5) == (padding == "masked")


@pytest.mark.parametrize(
    "settings", [{"attention_bias": "alibi", "positions": "none"}, {"encoder_alibi": True, "positions": "none"}]
)
def test_alibi_is_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="the token mixer bigs has no attention scores"):
        small_model("roberta_bigs", **SMALL, **settings)
