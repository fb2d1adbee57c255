"""The encoder on non-padding tokens: the results of the padded form, and when a batch stays padded."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
from torch import nn

from fairseq.modules.attention import MultiheadSelfAttention
from fairseq.modules.attention_bias import ALiBi
from fairseq.modules.encoder import EncoderLayer
from fairseq.modules.packing import Rows
from fairseq.modules.slots import EncoderContext
from fairseq.ops.alibi_attention import alibi_attention
from fairseq.ops.packed_attention import packed_attention
from tests.unit.roberta import PAD, small_model, without_dropout

LENGTHS = (9, 4, 1, 6)
ALIBI = {"encoder_alibi": True, "no_token_positional_embeddings": True}
VARIANTS = {
    "post-norm": {},
    "pre-norm": {"encoder_normalize_before": True},
    "sinusoidal": {"encoder_learned_pos": False},
    "scaled": {"no_scale_embedding": False, "layernorm_embedding": False},
    "alibi": ALIBI,
    "alibi asymmetrical": {**ALIBI, "encoder_alibi_asymmetrical": True},
    "clap": {"contrastive_pretraining": True},
    "activation checkpointing": {"checkpoint_activations": True},
    "offload": {"offload_activations": True},
    "layerdrop": {"encoder_layerdrop": 0.5},
    **{f"{name} attention": {**ALIBI, "attention_backend": name} for name in ("eager", "sdpa", "fused")},
}


def tokens_of(lengths=LENGTHS, width: int | None = None) -> torch.Tensor:
    """Ids (B, T), padded on the right."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(4, 30, (len(lengths), width or max(lengths)), generator=generator)
    for row, length in zip(ids, lengths, strict=True):
        row[0], row[length:] = 0, PAD
    return ids


@contextmanager
def seen(model):
    """The shapes that the first layer is given."""
    shapes: list[tuple[int, ...]] = []
    handle = model.encoder.sentence_encoder.layers[0].register_forward_pre_hook(
        lambda _, given: shapes.append(tuple(given[0].shape))
    )
    yield shapes
    handle.remove()


def outputs(model, tokens, packed: bool, **kwargs) -> list[torch.Tensor]:
    """Head output and gradients, packed or padded."""
    model.encoder.sentence_encoder.pack_below = 1.0 if packed else 0.0
    model.zero_grad()
    torch.manual_seed(5)
    with seen(model) as shapes:
        out = model(tokens, **kwargs)[0]
    assert all(shape[:2] == ((1, int(tokens.ne(PAD).sum())) if packed else tokens.shape) for shape in shapes)
    out.float().square().sum().backward()
    return [out.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize("variant", VARIANTS)
def test_masked_rows_and_gradients_equal_the_padded_form(variant):
    torch.manual_seed(1)
    model = small_model(**without_dropout(**VARIANTS[variant])).double()
    tokens = tokens_of()
    masked = (torch.arange(tokens.numel()).view_as(tokens) % 3 == 0) & tokens.ne(PAD)
    for got, wanted in zip(
        outputs(model, tokens, True, masked_tokens=masked),
        outputs(model, tokens, False, masked_tokens=masked),
        strict=True,
    ):
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("pooling", ["first", "masked_mean", "mean"])
def test_classification_equals_the_padded_form(pooling):
    torch.manual_seed(1)
    model = small_model(**without_dropout()).double()
    model.register_classification_head("h", num_classes=3)
    model.classification_heads["h"].pooling = pooling
    tokens = tokens_of()
    # The mean of all tokens reads what the layers make of padding, so there nothing is left out.
    packed = outputs(model, tokens, pooling != "mean", classification_head_name="h")
    model.encoder.sentence_encoder.pack_below = 1.0
    padded = outputs(model, tokens, False, classification_head_name="h")
    for got, wanted in zip(packed, padded, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-12)


def test_mean_pooling_stays_padded():
    model = small_model()
    model.register_classification_head("h", num_classes=3)
    model.classification_heads["h"].pooling = "mean"
    with seen(model) as shapes:
        model(tokens_of(), classification_head_name="h")
    assert shapes == [(4, 9, 12)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_low_precision_is_as_close_to_exact_as_the_padded_form(dtype):
    torch.manual_seed(1)
    model = small_model(**without_dropout(**ALIBI)).eval()
    model.register_classification_head("h", num_classes=3)
    model.apply(lambda m: nn.init.normal_(m.weight, std=0.3) if isinstance(m, nn.Linear) else None)
    tokens = tokens_of()

    def run(kind: torch.dtype, below: float) -> torch.Tensor:
        model.to(kind).encoder.sentence_encoder.pack_below = below
        return model(tokens, classification_head_name="h")[0].double().detach()

    if dtype == torch.bfloat16:
        model.bfloat16()
    exact = run(torch.float64, 0.0)
    packed, padded = ((run(dtype, below) - exact).abs().max() for below in (1.0, 0.0))
    assert packed <= 2 * padded + torch.finfo(dtype).eps * exact.abs().max()


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_under_autocast():
    model = small_model(dropout=0.5)
    model.register_classification_head("h", num_classes=3)
    with torch.autocast("cpu", torch.bfloat16):
        model(tokens_of(), classification_head_name="h")[0].float().sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)


def test_dropout_repeats_with_the_seed():
    model = small_model(dropout=0.3, attention_dropout=0.3, activation_dropout=0.3)
    model.register_classification_head("h", num_classes=3)
    first, again = (outputs(model, tokens_of(), True, classification_head_name="h") for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_features_keep_the_originals_values_at_padding_unless_nobody_reads_them():
    torch.manual_seed(1)
    model, tokens = small_model().eval(), tokens_of()
    with torch.no_grad():
        features, _ = model(tokens, features_only=True)
        real, _ = model(tokens, features_only=True, read=tokens.ne(PAD))
        logits, extra = model(tokens, masked_tokens=tokens.ne(PAD), return_all_hiddens=True)
    padding = tokens.eq(PAD)
    assert features[padding].abs().min(dim=1).values.min() > 0 and not real[padding].any()
    torch.testing.assert_close(real[~padding], features[~padding])
    assert extra["inner_states"][-1].shape == (9, 4, 12) and logits.shape == (sum(LENGTHS), 31)


def test_inputs_that_stay_padded(monkeypatch):
    model = small_model(**without_dropout())
    encoder = model.encoder.sentence_encoder
    tokens = tokens_of()
    inside = tokens.clone()
    inside[0, 3] = PAD
    cases = [
        {"src_tokens": tokens_of((9, 9))},
        {"src_tokens": inside},
        {"src_tokens": tokens.flip(1)},
        {"src_tokens": tokens_of((9, 4, 0))},
        {"src_tokens": tokens, "padding_mask": torch.zeros_like(tokens, dtype=torch.bool)},
        {"src_tokens": tokens, "return_all_hiddens": True},
    ]
    with seen(model) as shapes:
        for case in cases:
            model(features_only=True, read=case["src_tokens"].ne(PAD), **case)
        model(tokens, masked_tokens=torch.ones_like(tokens, dtype=torch.bool))  # padding is to be projected too
        model(tokens)
        monkeypatch.setenv("FAIRSEQ_NATIVE", "0")
        model(tokens, features_only=True, read=tokens.ne(PAD))
        monkeypatch.delenv("FAIRSEQ_NATIVE")
        encoder.pack_below = 0.5
        model(tokens, features_only=True, read=tokens.ne(PAD))
        assert all(shape[0] > 1 for shape in shapes) and len(shapes) == len(cases) + 4
        encoder.pack_below = 0.9
        model(tokens, features_only=True, read=tokens.ne(PAD))
        assert shapes[-1] == (1, 20, 12)


def test_position_ids_and_masks_are_packed_too():
    torch.manual_seed(1)
    model, tokens = small_model(**without_dropout()).double(), tokens_of()
    padding = tokens.eq(PAD)
    positions = torch.where(padding, PAD, torch.arange(9).flip(0) + PAD + 1)
    kwargs = {"padding_mask": padding, "position_ids": positions, "masked_tokens": ~padding}
    for got, wanted in zip(
        outputs(model, tokens, True, **kwargs), outputs(model, tokens, False, **kwargs), strict=True
    ):
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-12)


class Unaware(MultiheadSelfAttention):
    """A plugin's mixer, which inherits what the built-in one can do but not how."""

    def forward(self, x, context):
        assert context.lengths is None and x.shape[:2] == context.padding.shape
        return super().forward(x, context)


class Neighbours(nn.Linear):
    """A channel mixer that is not row by row."""

    row_wise = False


class OwnLayer(EncoderLayer):
    def forward(self, x, context):
        return super().forward(x, context)


@pytest.mark.parametrize("kind", ["mixer", "channels", "layer"])
def test_parts_that_know_nothing_of_packing_are_given_padded_batches(kind):
    model = small_model()
    mixer = Unaware(12, 3) if kind == "mixer" else MultiheadSelfAttention(12, 3)
    channels = Neighbours(12, 12) if kind == "channels" else nn.Linear(12, 12)
    layer = (OwnLayer if kind == "layer" else EncoderLayer)(
        mixer, channels, nn.LayerNorm(12), nn.LayerNorm(12), pre_norm=False
    )
    model.encoder.sentence_encoder.layers[1] = layer
    with seen(model) as shapes:
        model(tokens_of(), features_only=True, read=tokens_of().ne(PAD))
    assert shapes == [(4, 9, 12)]


def test_entrance_and_exit():
    padding = tokens_of().eq(PAD)
    rows = Rows.plan(padding, ~padding, 1.0)
    x = torch.randn(4, 9, 2, dtype=torch.float64, requires_grad=True)
    packed = rows.enter(x)
    assert packed.shape == (1, 20, 2) and rows.lengths == LENGTHS and rows.padding is None
    assert torch.equal(rows.exit(packed), x.masked_fill(padding[..., None], 0))
    assert torch.equal(rows.enter(rows.exit(packed)), packed)
    assert torch.autograd.gradcheck(lambda y: rows.exit(rows.enter(y)), (x,))


@pytest.mark.parametrize("pack_below", [0.0, 1.0])
def test_exit_of_the_rows_that_are_read(pack_below):
    padding = tokens_of().eq(PAD)
    read = ~padding & (torch.arange(9) < 2)
    rows = Rows.plan(padding, read, pack_below).narrow(0.75)
    x = torch.randn(4, 9, 2)
    kept = EncoderContext(kept=rows.kept).keep(rows.enter(x))
    assert kept.shape == (1, int(read.sum()), 2)
    assert torch.equal(rows.exit(kept), x.masked_fill(~read[..., None], 0))
    assert rows.narrow(0.0) is rows and Rows.plan(padding).narrow(1.0).kept is None


@pytest.mark.parametrize("asymmetrical", [False, True])
def test_packed_attention_is_attention_of_each_sequence(asymmetrical):
    torch.manual_seed(1)
    lengths, slopes = (5, 70, 1), torch.tensor(ALiBi(3).slopes)
    q, k, v, up = (torch.randn(1, sum(lengths), 3, 8, dtype=torch.float64).transpose(1, 2) for _ in range(4))
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    out = packed_attention(*leaves, lengths, slopes, asymmetrical, 0.2, 7)
    found = [out, *torch.autograd.grad(out, leaves, up)]
    start = 0
    for number, length in enumerate(lengths):
        part = [x.narrow(2, start, length).clone().requires_grad_() for x in (q, k, v)]
        alone = alibi_attention(*part, slopes, asymmetrical, None, 0.2, 7 + number)
        wanted = [alone, *torch.autograd.grad(alone, part, up.narrow(2, start, length))]
        for got, x in zip(found, wanted, strict=True):
            torch.testing.assert_close(got.narrow(2, start, length), x)
        start += length


def test_packed_attention_is_a_sound_operator():
    q, k, v = (torch.randn(1, 2, 6, 4, dtype=torch.float64, requires_grad=True) for _ in range(3))
    arguments = ([2, 4], "alibi_asymmetrical", [torch.ones(2)], 0.25, torch.tensor(3))
    torch.library.opcheck(torch.ops.fairseq.packed_attention_forward.default, (q, k, v, *arguments))
    assert torch.autograd.gradcheck(
        lambda *x: packed_attention(*x, [2, 4], torch.ones(2), True, 0.25, 3), (q, k, v), atol=1e-6
    )


@pytest.mark.parametrize("lengths", [(2, 3), (6, 0), (), (3, 3, 3)])
def test_lengths_must_add_up(lengths):
    x = torch.randn(1, 2, 6, 4)
    with pytest.raises(ValueError, match="add up to 6 tokens"):
        packed_attention(x, x, x, lengths, torch.ones(2))


def test_tensors_must_fit():
    x = torch.randn(2, 2, 3, 4)
    with pytest.raises(ValueError, match=r"must be \(1, H, N, D\)"):
        packed_attention(x, x, x, (3, 3), torch.ones(2))
