"""The last layer computes only the rows that are read: the same results, and when everything is computed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fairseq.modules.attention import MultiheadSelfAttention
from fairseq.modules.encoder import EncoderLayer
from fairseq.modules.lm_head import RobertaLMHead
from fairseq.modules.task_heads import RobertaClassificationHead
from tests.unit.roberta import PAD, small_model, some_tokens, without_dropout

ALIBI = {"encoder_alibi": True, "no_token_positional_embeddings": True}
VARIANTS = {
    "post-norm": {},
    "pre-norm": {"encoder_normalize_before": True},
    "alibi": ALIBI,
    "clap": {"contrastive_pretraining": True},
    "activation checkpointing": {"checkpoint_activations": True},
    "one layer": {"encoder_layers": 1},
    "untied": {"untie_weights_roberta": True},
}


def rows_of_last_layer(model) -> list[int]:
    """Filled with the number of rows that the last layer's feed-forward block is given in each pass."""
    counts: list[int] = []
    last = model.encoder.sentence_encoder.layers[-1]
    last.fc1.register_forward_pre_hook(lambda _, given: counts.append(given[0].shape[:-1].numel()))
    return counts


def loss_and_gradients(model, below: float, **inputs) -> list[torch.Tensor]:
    model.encoder.sentence_encoder.read_below = below
    model.zero_grad()
    out = model(**inputs)[0]
    out.square().sum().backward()
    return [out.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]


def masked_of(tokens: torch.Tensor, every: int) -> torch.Tensor:
    return (torch.arange(tokens.numel()).view_as(tokens) % every == 1) & tokens.ne(PAD)


@pytest.mark.parametrize("packs", [True, False], ids=["packed", "padded"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_losses_and_gradients_are_those_of_all_rows(variant, packs):
    torch.manual_seed(1)
    model = small_model(**without_dropout(**VARIANTS[variant])).double()
    model.encoder.sentence_encoder.pack_below = float(packs)
    tokens = some_tokens()[:2]
    masked = masked_of(tokens, 4)
    counts = rows_of_last_layer(model)
    for extra in ({}, {"masked_targets": tokens[masked]}):
        inputs = {"src_tokens": tokens, "masked_tokens": masked, **extra}
        for few, everything in zip(
            loss_and_gradients(model, 0.75, **inputs), loss_and_gradients(model, 0.0, **inputs), strict=True
        ):
            torch.testing.assert_close(few, everything, rtol=1e-9, atol=1e-12)
    assert set(counts) == {int(masked.sum()), 16 if packs else 18}


@pytest.mark.parametrize(("pooling", "rows"), [("first", 3), ("masked_mean", 27), ("mean", 27)])
def test_heads_say_which_features_they_read(pooling, rows):
    model = small_model(**without_dropout(), pooling=pooling)
    model.register_classification_head("h", num_classes=2)
    counts = rows_of_last_layer(model)
    tokens = torch.randint(4, 30, (3, 9))
    few = loss_and_gradients(model, 0.75, src_tokens=tokens, classification_head_name="h")
    everything = loss_and_gradients(model, 0.0, src_tokens=tokens, classification_head_name="h")
    for a, b in zip(few, everything, strict=True):
        torch.testing.assert_close(a, b)
    assert counts[0] == rows


class Highest(RobertaClassificationHead):
    """A plugin's head that inherits all but the way it pools."""

    def forward(self, features, **unused):
        return self.out_proj(self.dense(features.amax(dim=1)))


def test_an_inherited_head_with_its_own_forward_is_given_everything():
    torch.manual_seed(1)
    model = small_model(**without_dropout())
    model.attach_head("h", Highest(12, 12, 2, "tanh", 0.0))
    counts = rows_of_last_layer(model)
    model(torch.randint(4, 30, (3, 9)), classification_head_name="h")
    assert counts == [27]


def test_a_mask_of_one_row_stands_for_all():
    torch.manual_seed(1)
    model, tokens = small_model(**without_dropout()), torch.randint(4, 30, (3, 9))
    first = torch.arange(9).eq(2)[None]
    with torch.no_grad():
        few, everything = model(tokens, features_only=True, read=first)[0], model(tokens, features_only=True)[0]
    torch.testing.assert_close(few[:, 2], everything[:, 2])
    assert not few[:, 3:].any()


def test_a_batch_without_masked_tokens():
    model = small_model()
    tokens = some_tokens()[:2]
    none = torch.zeros_like(tokens, dtype=torch.bool)
    loss, _ = model(tokens, masked_tokens=none, masked_targets=tokens[none])
    loss.backward()
    assert float(loss.detach()) == 0
    assert all(not bool(p.grad.any()) for p in model.parameters() if p.grad is not None)


def test_everything_is_computed_where_it_may_be_read(monkeypatch):
    model = small_model().eval()
    tokens = torch.randint(4, 30, (2, 9))
    masked = masked_of(tokens, 4)
    counts = rows_of_last_layer(model)
    model(tokens)
    model(tokens, features_only=True)
    model(tokens, masked_tokens=masked, return_all_hiddens=True)
    model(tokens, masked_tokens=torch.ones_like(masked))
    monkeypatch.setenv("FAIRSEQ_NATIVE", "0")
    model(tokens, masked_tokens=masked)
    assert counts == [18] * 5


class OwnHead(RobertaLMHead):
    """A plugin's head, which looks at all features."""

    def forward(self, features, masked_tokens=None, **unused):
        return super().forward(features - features.mean(dim=1, keepdim=True), masked_tokens)


class OwnLayer(EncoderLayer):
    def forward(self, x, context):
        assert context.kept is None
        return super().forward(x, context)


class Neighbours(nn.Linear):
    """A channel mixer that is not row by row."""

    row_wise = False


@pytest.mark.parametrize("kind", ["head", "layer", "channels"])
def test_parts_that_may_read_more_are_given_everything(kind):
    torch.manual_seed(1)
    model = small_model(**without_dropout())
    encoder = model.encoder
    if kind == "head":
        encoder.lm_head = OwnHead(12, 31, "gelu")
    else:
        channels = Neighbours(12, 12) if kind == "channels" else nn.Linear(12, 12)
        layer = OwnLayer if kind == "layer" else EncoderLayer
        mixer = MultiheadSelfAttention(12, 3)
        encoder.sentence_encoder.layers[-1] = layer(mixer, channels, nn.LayerNorm(12), nn.LayerNorm(12), pre_norm=False)
    tokens = torch.randint(4, 30, (2, 9))
    masked = masked_of(tokens, 4)
    shapes = []
    encoder.sentence_encoder.layers[-1].register_forward_hook(lambda m, given, out: shapes.append(out.shape))
    with torch.no_grad():
        few = model(tokens, masked_tokens=masked)[0]
        everything = model(tokens)[0][masked] if kind != "head" else None
    assert shapes[0] == (2, 9, 12)
    if everything is not None:
        torch.testing.assert_close(few, everything)


class OwnMixer(MultiheadSelfAttention):
    """A plugin's mixer, which knows nothing of rows that are not read."""

    def forward(self, x, context):
        return self.out_proj(self.v_proj(x)).cumsum(1)


class Gated(MultiheadSelfAttention):
    """A plugin's mixer around the built-in one."""

    def forward(self, x, context):
        assert context.kept is None
        return super().forward(x, context) * x.sigmoid()


@pytest.mark.parametrize("pre_norm", [False, True])
@pytest.mark.parametrize("mixer", [OwnMixer, Gated])
def test_a_mixer_that_gives_everything_is_cut_by_the_layer(mixer, pre_norm):
    torch.manual_seed(1)
    model = small_model(**without_dropout())
    layer = EncoderLayer(mixer(12, 3), nn.Linear(12, 12), nn.LayerNorm(12), nn.LayerNorm(12), pre_norm=pre_norm)
    model.encoder.sentence_encoder.layers[-1] = layer
    tokens = torch.randint(4, 30, (2, 9))
    masked = masked_of(tokens, 4)
    shapes = []
    layer.register_forward_hook(lambda m, given, out: shapes.append(out.shape))
    with torch.no_grad():
        few, everything = model(tokens, masked_tokens=masked)[0], model(tokens)[0]
    torch.testing.assert_close(few, everything[masked])
    assert shapes[0] == (1, int(masked.sum()), 12)
