"""What the collater tells a device of a batch, and that everybody computes the same with it as without."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data._utils.pin_memory import pin_memory

from fairseq.criterions import fairseq_criterion
from fairseq.criterions.masked_lm import MaskedLmLoss
from fairseq.data.datasets import FairseqDataset
from fairseq.layout import IGNORED, ROWS, Layout, LayoutCollater, layout_of, layout_of_tokens, with_layouts
from fairseq.models.roberta import RobertaModel
from fairseq.modules.lm_head import RobertaLMHead
from fairseq.tasks.fairseq_task import FairseqTask
from fairseq.tree import map_tensors
from tests.unit.roberta import PAD, Task, small_model, without_dropout
from tests.unit.test_packing import seen, tokens_of


def target_of(tokens: torch.Tensor) -> torch.Tensor:
    """Every third token is predicted."""
    chosen = (torch.arange(tokens.numel()).view_as(tokens) % 3 == 0) & tokens.ne(PAD)
    return torch.where(chosen, tokens, PAD)


def sample_of(tokens: torch.Tensor) -> dict[str, Any]:
    counts = tokens.ne(PAD).sum(1)
    net_input = {"src_tokens": tokens, "src_lengths": counts}
    return {
        "net_input": net_input,
        "target": target_of(tokens),
        "ntokens": int(counts.sum()),
        "nsentences": len(tokens),
    }


def test_layout_of_a_padded_batch():
    tokens = tokens_of((4, 2, 3))
    layout = layout_of_tokens(tokens, PAD, target_of(tokens))
    assert layout.padded and layout.lengths == (4, 2, 3) and not layout.reads_padding
    assert layout.token_counts.tolist() == [4, 2, 3] and layout.starts.tolist() == [0, 4, 6, 9]
    assert layout.token_counts.dtype == layout.starts.dtype == torch.int32
    assert layout.packed.tolist() == [0, 1, 2, 3, 4, 5, 8, 9, 10]
    predicted = layout.predicted
    assert predicted.count == 3 and predicted.places[:3].tolist() == [0, 3, 9]
    # All other tokens come along, because there are not enough to fill up the rows, but no padding.
    assert sorted(predicted.places.tolist()) == layout.packed.tolist()
    assert predicted.targets[:3].tolist() == tokens.flatten()[[0, 3, 9]].tolist()
    assert (predicted.targets[3:] == IGNORED).all()
    assert torch.equal(layout.packed[predicted.packed], predicted.places)


def test_rows_come_in_multiples():
    tokens = torch.full((8, 64), 5)
    predicted = layout_of_tokens(tokens, PAD, torch.where(torch.arange(64) % 9 == 0, tokens, PAD)).predicted
    assert predicted.count == 64 and len(predicted.places) == ROWS == len(predicted.places.unique())


def test_batches_that_cannot_be_packed():
    even, tokens = tokens_of((9, 9)), tokens_of((9, 4, 6))
    inside = tokens.clone()
    inside[0, 3] = PAD
    assert layout_of_tokens(even, PAD) == Layout(padded=False)
    for batch in (inside, tokens.flip(1)):
        assert layout_of_tokens(batch, PAD) == Layout(padded=True)
    empty = layout_of_tokens(tokens_of((9, 4, 0)), PAD)
    assert empty.token_counts.tolist() == [9, 4, 0] and empty.starts is empty.lengths is empty.packed is None
    everything = torch.full_like(tokens, 7)
    assert layout_of_tokens(tokens, PAD, everything).reads_padding


def test_nothing_is_predicted():
    tokens = tokens_of()
    predicted = layout_of_tokens(tokens, PAD, torch.full_like(tokens, PAD)).predicted
    assert predicted.count == len(predicted.places) == 0


def test_samples_are_left_as_they_are_but_for_layouts():
    sample = sample_of(tokens_of())
    found = with_layouts(sample, PAD, True)
    assert found.keys() - sample.keys() == {"layouts"} and found.items() >= sample.items()
    assert with_layouts({}, PAD) == {} and with_layouts(None, PAD) is None
    own = {"net_input": {**sample["net_input"], "padding_mask": torch.ones(4, 9) > 0}}
    assert with_layouts(own, PAD) is own
    two = with_layouts({"net_input1": sample["net_input"], "net_input2": sample["net_input"]}, PAD)
    assert two["layouts"].keys() == {"net_input1", "net_input2"}
    typed = {"net_input": {**sample["net_input"], "token_type_ids": torch.tensor([[0, 2]])}}
    assert with_layouts(typed, PAD)["layouts"]["net_input"].types == (0, 2)


def test_layouts_move_with_their_sample_and_are_not_looked_at_on_the_cpu():
    sample = with_layouts(sample_of(tokens_of()), PAD, True)
    moved = map_tensors(lambda tensor: tensor.to("meta"), sample)
    layout = layout_of(moved)
    assert layout.lengths == (9, 4, 1, 6) and layout.predicted.count == 8
    assert layout.starts.device.type == layout.predicted.places.device.type == "meta"
    assert layout_of(sample) is None and layout_of({"net_input": moved["net_input"]}) is None


def test_loaders_pin_layouts(monkeypatch: pytest.MonkeyPatch):
    pinned: list[int] = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor, *unused: pinned.append(id(tensor)) or tensor)
    sample = with_layouts(sample_of(tokens_of()), PAD, True)
    assert isinstance(pin_memory(sample)["layouts"]["net_input"], Layout)
    every: list[int] = []
    map_tensors(lambda tensor: every.append(id(tensor)), sample)
    assert sorted(pinned) == sorted(every) and len(every) == 9


@pytest.fixture
def layouts_used(monkeypatch: pytest.MonkeyPatch):
    """As on a device."""
    monkeypatch.setattr(fairseq_criterion, "layout_of", lambda sample, name: sample.get("layouts", {}).get(name))


def results(model: nn.Module, criterion: nn.Module, sample: dict[str, Any]) -> list[torch.Tensor]:
    model.zero_grad()
    loss, size, _ = criterion(model, sample)
    loss.backward()
    return [loss.detach(), torch.as_tensor(size), *(p.grad for p in model.parameters() if p.grad is not None)]


def assert_same(found: list[torch.Tensor], wanted: list[torch.Tensor]) -> None:
    for got, expected in zip(found, wanted, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "lengths", [(9, 4, 1, 6), (9, 9), (9, 4, 0), (9,) * 50], ids=["packed", "full", "empty", "many"]
)
@pytest.mark.parametrize("arch", ["roberta", "roberta_alibi", "roberta_clap"])
def test_loss_and_gradients_are_those_without_a_layout(arch: str, lengths: tuple[int, ...], layouts_used: None):
    torch.manual_seed(1)
    model, criterion = small_model(arch, **without_dropout()).double(), MaskedLmLoss(None, Task())
    sample = sample_of(tokens_of(lengths))
    packs = min(lengths) > 0 and len(set(lengths)) > 1
    with seen(model) as shapes:
        found = results(model, criterion, with_layouts(sample, PAD, True))
    assert (shapes[0][0] == 1) == packs
    assert_same(found, results(model, criterion, sample))


@pytest.mark.parametrize("predicts", [False, True])
def test_a_model_whose_head_wants_a_mask(predicts: bool, layouts_used: None):
    class Head(RobertaLMHead):
        def forward(self, features, masked_tokens=None, **unused):
            assert masked_tokens.dtype == torch.bool
            return super().forward(features, masked_tokens)

    model, criterion = small_model(**without_dropout()).double(), MaskedLmLoss(None, Task())
    model.encoder.lm_head.__class__ = Head
    sample = sample_of(tokens_of())
    assert model.uses_layout and not model.uses_places
    assert_same(results(model, criterion, with_layouts(sample, PAD, predicts)), results(model, criterion, sample))


class OwnForward(RobertaModel):
    def forward(self, src_tokens, **kwargs):
        assert "layout" not in kwargs
        return super().forward(src_tokens, **kwargs)


class OwnLoss(MaskedLmLoss):
    """Predicts something else than the sample says."""

    def forward(self, model, sample, reduce=True):
        return super().forward(model, {**sample, "target": torch.full_like(sample["target"], PAD)})


def test_plugins_are_given_no_layouts(layouts_used: None):
    sample = with_layouts(sample_of(tokens_of()), PAD, True)
    model = small_model(**without_dropout())
    assert float(OwnLoss(None, Task())(model, sample)[0].detach()) == 0
    model.__class__ = OwnForward
    assert float(MaskedLmLoss(None, Task())(model, sample)[0].detach()) > 0


@pytest.mark.parametrize("pooling", ["first", "masked_mean", "mean"])
def test_sentence_heads(pooling: str):
    torch.manual_seed(1)
    model, tokens = small_model(**without_dropout()).double(), tokens_of()
    model.register_classification_head("h", num_classes=3)
    model.classification_heads["h"].pooling = pooling
    layout = layout_of_tokens(tokens, PAD)
    with seen(model) as shapes:
        found = model(tokens, classification_head_name="h", layout=layout)[0]
    assert (shapes[0][0] == 1) == (pooling != "mean")
    torch.testing.assert_close(found, model(tokens, classification_head_name="h")[0])


def test_a_padding_mask_of_the_callers_own_counts_more_than_a_layout():
    model, tokens = small_model(**without_dropout()).double(), tokens_of()
    nothing = torch.zeros_like(tokens, dtype=torch.bool)
    wanted = model(tokens, padding_mask=nothing)[0]
    found = model(tokens, padding_mask=nothing, layout=layout_of_tokens(tokens, PAD))[0]
    assert torch.equal(found, wanted)


def test_token_types_are_checked_by_what_the_host_knows():
    model, tokens = small_model("roberta", type_vocab_size=2), tokens_of()
    layout = replace(layout_of_tokens(tokens, PAD), types=(0, 2))
    with pytest.raises(Exception, match="between 0 and 1, but 2"):
        model(tokens, token_type_ids=torch.zeros_like(tokens), layout=layout)


class OwnStep(FairseqTask):
    def train_step(self, *args, **kwargs):
        return super().train_step(*args, **kwargs)


class Items(FairseqDataset):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> torch.Tensor:
        return tokens_of()[index]

    def num_tokens(self, index: int) -> int:
        return 9

    def collater(self, samples: list[torch.Tensor]) -> dict[str, Any]:
        return {"net_input": {"src_tokens": torch.stack(samples)}}


@pytest.mark.parametrize("kind", [FairseqTask, OwnStep])
def test_only_a_device_is_sent_layouts(kind: type, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(kind, "source_dictionary", Task().source_dictionary)
    task, items = kind(None), Items()
    assert task.get_batch_iterator(items).collate_fn == items.collater
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    collate = kind(None).get_batch_iterator(items).collate_fn
    assert isinstance(collate, LayoutCollater) == (kind is FairseqTask)
    assert ("layouts" in collate([items[0], items[1]])) == (kind is FairseqTask)
