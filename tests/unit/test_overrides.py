"""Methods that the original calls are called where a subclass overrides them; arguments are used or refused.

Legend: B batch, T tokens, C channels.
"""

from __future__ import annotations

import argparse
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from fairseq.criterions import FairseqCriterion
from fairseq.criterions.masked_lm import MaskedLmLoss
from fairseq.criterions.sentences import SentencePredictionCriterion
from fairseq.models import FairseqEncoder, FairseqEncoderModel
from fairseq.models.loading import build_stored_model
from fairseq.models.roberta import RobertaEncoder, RobertaHubInterface, RobertaModel
from fairseq.overrides import accepts, binds, keeps_up, overridden
from fairseq.registry import Registry
from fairseq.tasks import FairseqTask
from fairseq.training.trainer import Trainer
from tests.unit.roberta import PAD, SIZES, Task, some_tokens, without_dropout


def model_with(
    encoder_class: type[RobertaEncoder] = RobertaEncoder, model_class: type[RobertaModel] = RobertaModel, **values: Any
) -> Any:
    """A model of a subclass, without dropout."""
    args = argparse.Namespace(**{**SIZES, **without_dropout(**values)})
    return model_class(args, encoder_class(args, Task().source_dictionary))


def batch() -> dict[str, Any]:
    tokens = some_tokens(2)
    target = torch.where(torch.arange(tokens.size(1)) % 3 == 1, tokens, PAD)
    return {"net_input": {"src_tokens": tokens}, "target": target, "ntokens": 18, "nsentences": 2}


class Parent:
    def quick(self) -> int:
        return 1

    def plain(self) -> int:
        return 1


class Slower(Parent):
    def plain(self) -> int:
        return 2


class Both(Slower):
    def quick(self) -> int:
        return 2


def test_what_a_subclass_changed() -> None:
    assert not overridden(Parent(), Parent, "quick", "plain") and overridden(Slower(), Parent, "quick", "plain")
    patched = Parent()
    patched.plain = lambda: 3  # type: ignore[method-assign]
    assert overridden(patched, Parent, "plain")
    assert [keeps_up(part, "quick", "plain") for part in (Parent(), Slower(), Both(), patched)] == [
        True,
        False,
        True,
        False,
    ]
    assert accepts(lambda a, b=1: a, "b") and accepts(lambda **kw: kw, "b") and not accepts(lambda a: a, "b")
    assert binds(lambda a, b: a, 1, 2) and not binds(lambda a: a, 1, 2)


class Zeros(RobertaEncoder):
    def extract_features(self, src_tokens, return_all_hiddens=False, **kw):  # type: ignore[no-untyped-def, override]
        self.given = set(kw)
        features, extra = super().extract_features(src_tokens, return_all_hiddens, **kw)
        return torch.zeros_like(features), extra


def test_extract_features_of_a_subclass() -> None:
    model, tokens = model_with(Zeros), some_tokens(2)
    assert not bool(model(tokens, features_only=True)[0].any())
    logits = model(tokens)[0]
    torch.testing.assert_close(logits, model.encoder.lm_head(torch.zeros(2, 9, 12)))
    assert model.encoder.given == set()
    padding = torch.zeros(2, 9, dtype=torch.bool)
    model(tokens, padding_mask=padding, src_lengths=torch.tensor([9, 9]))
    assert model.encoder.given == {"padding_mask"}, "only what was given, and nothing that the encoder never uses"
    model.register_classification_head("head", 3)
    zero = model.classification_heads["head"](torch.zeros(1, 1, 12))
    torch.testing.assert_close(model(tokens, classification_head_name="head")[0], zero.expand(2, 3))
    loss = MaskedLmLoss(None, Task())(model, batch())[0].detach()
    assert float(loss) == pytest.approx(float(F_loss(logits.detach())), rel=1e-5)
    assert model(tokens, return_all_hiddens=True, features_only=True)[1]["inner_states"] is not None


def F_loss(logits: torch.Tensor) -> torch.Tensor:
    target = batch()["target"]
    masked = target.ne(PAD)
    return nn.functional.cross_entropy(logits[masked], target[masked], reduction="sum")


def test_masks_of_the_model_itself_reach_a_subclass() -> None:
    values = {"zero_masking": True, "mask_prob": 0.5, "lm_head": "clap", "layernorm_embedding": False}
    model = model_with(Zeros, **values)
    model(some_tokens(2))
    assert model.encoder.given == {"token_embeddings"}


@pytest.mark.parametrize("way", ["encoder", "extract_features", "model", "head"])
def test_token_embeddings_are_used(way: str) -> None:
    model, tokens = model_with(), some_tokens(2)
    model.register_classification_head("head", 3)
    calls: dict[str, Any] = {
        "encoder": lambda **kw: model.encoder(tokens, features_only=True, **kw)[0],
        "extract_features": lambda **kw: model.encoder.extract_features(tokens, **kw)[0],
        "model": lambda **kw: model(tokens, **kw)[0],
        "head": lambda **kw: model(tokens, classification_head_name="head", **kw)[0],
    }
    own = model.encoder.sentence_encoder.embed_tokens(tokens).detach().requires_grad_()
    torch.testing.assert_close(calls[way](token_embeddings=own), calls[way]())
    other = calls[way](token_embeddings=own * 3)
    assert not torch.allclose(other[0], calls[way]()[0])
    other.square().sum().backward()
    assert own.grad is not None and bool(own.grad[0].any())


def test_arguments_that_nobody_uses_are_errors() -> None:
    model, tokens = model_with(), some_tokens(2)
    for call in (model, model.encoder, model.encoder.extract_features, model.extract_features):
        with pytest.raises(TypeError, match="was given 'token_embedings', which nothing in it uses: leave it out"):
            call(tokens, token_embedings=torch.zeros(2, 9, 12))
        call(tokens, anything=None, src_lengths=torch.tensor([9, 7]), prev_output_tokens=tokens)
    with pytest.raises(TypeError, match="freeze_encoder"):
        model(tokens, classification_head_name=None, freeze_encoder=True)


def test_a_plugins_forward_may_hand_on_what_it_used(caplog: pytest.LogCaptureFixture) -> None:
    class Words(RobertaModel):
        def forward(self, src_tokens, features_only=False, **kwargs):  # type: ignore[no-untyped-def, override]
            x, extra = self.encoder(src_tokens, features_only, return_all_hiddens=True, **kwargs)
            return x[kwargs["word_mask"]], extra

    model, tokens = model_with(model_class=Words), some_tokens(2)
    assert model(tokens, word_mask=tokens.ne(PAD))[0].shape == (16, 31)
    assert "RobertaEncoder was given 'word_mask', which nothing in it uses" in caplog.text


class Shifted(RobertaModel):
    """Its targets are those of the sample, one id lower."""

    def get_targets(self, sample, net_output):  # type: ignore[no-untyped-def]
        assert net_output[0].dim() == 2
        return sample.get("target", sample.get("labels")) - 1


def test_get_targets_of_a_subclass() -> None:
    plain, shifted, sample = model_with(), model_with(model_class=Shifted), batch()
    shifted.load_state_dict(plain.state_dict())
    assert plain.computes_loss and not shifted.computes_loss
    expected = {**sample, "target": torch.where(sample["target"].ne(PAD), sample["target"] - 1, PAD)}
    criterion = MaskedLmLoss(None, Task())
    masked = sample["target"].ne(PAD)
    logits = plain(sample["net_input"]["src_tokens"])[0][masked]
    wanted = nn.functional.cross_entropy(logits, expected["target"][masked], reduction="sum")
    assert float(criterion(shifted, sample)[0].detach()) == pytest.approx(float(wanted.detach()), rel=1e-5)
    assert float(criterion(plain, sample)[0].detach()) != pytest.approx(float(wanted.detach()), rel=1e-3)


def test_get_targets_of_a_subclass_for_sentences() -> None:
    task = SimpleNamespace(cfg=SimpleNamespace(num_classes=3), target_dictionary=None)
    cfg = SimpleNamespace(classification_head_name="head", regression_target=False)
    criterion = SentencePredictionCriterion(cfg, task)
    model = model_with(model_class=Shifted)
    model.register_classification_head("head", 3)
    sample = {**batch(), "labels": torch.tensor([[1], [3]])}
    del sample["target"]
    loss = criterion(model, sample)[0]
    logits = model(**sample["net_input"], classification_head_name="head")[0]
    assert float(loss.detach()) == pytest.approx(
        float(nn.functional.cross_entropy(logits.detach(), torch.tensor([0, 2]), reduction="sum")), rel=1e-5
    )


class FeaturesOnly(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(12, 2)

    def forward(self, features):  # type: ignore[no-untyped-def]
        return self.project(features)


def test_any_module_may_be_a_head() -> None:
    model, tokens = model_with(), some_tokens(2)
    model.classification_heads["linear"] = nn.Linear(12, 4)
    model.classification_heads["own"] = FeaturesOnly()
    features = model(tokens, features_only=True)[0]
    torch.testing.assert_close(
        model(tokens, classification_head_name="linear")[0], model.classification_heads["linear"](features)
    )
    assert model(tokens, classification_head_name="own", padding_mask=tokens.eq(PAD))[0].shape == (2, 9, 2)
    other = model_with()  # without these heads, which the file cannot describe
    other.args.load_checkpoint_heads = True
    other.load_state_dict(model.state_dict())
    assert list(other.classification_heads) == []
    other.classification_heads["own"] = nn.Linear(12, 4)
    other.load_state_dict(model.state_dict())  # another kind of head: it starts anew
    model.register_classification_head("own", 3)


class Deep(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.updates: list[int] = []
        self.epochs: list[int] = []

    def set_num_updates(self, num_updates: int) -> None:
        self.updates.append(num_updates)

    def set_epoch(self, epoch: int) -> None:
        self.epochs.append(epoch)

    def upgrade_state_dict(self, state: dict[str, Any]) -> None:
        state.pop("leftover", None)


def test_modules_are_told_however_deep_they_are() -> None:
    model = model_with()
    deep = Deep()
    model.encoder.sentence_encoder.layers[1].add_module("deep", nn.Sequential(nn.Identity(), deep))
    model.set_num_updates(7)
    model.set_epoch(3)
    assert set(deep.updates) == {7} and deep.epochs == [3]
    model.load_state_dict({**model.state_dict(), "leftover": torch.zeros(1)})


def test_max_positions_is_the_encoders() -> None:
    class Short(RobertaEncoder):
        def max_positions(self) -> int:
            return 5

    assert model_with(Short).max_positions() == 5 and model_with().max_positions() == SIZES["max_positions"]


def test_the_hub_asks_what_was_overridden() -> None:
    class Louder(RobertaModel):
        def forward(self, src_tokens, **kwargs):  # type: ignore[no-untyped-def, override]
            x, extra = super().forward(src_tokens, **kwargs)
            return x + torch.nn.functional.one_hot(torch.tensor(9), x.size(-1)) * (x.size(-1) > 12) * 1e3, extra

    class Hub(RobertaHubInterface):
        def extract_features(self, tokens, return_all_hiddens=False):  # type: ignore[no-untyped-def, override]
            return torch.ones(1, tokens.size(-1), 12)

    task = Task()
    model = model_with(model_class=Louder).eval()
    hub = RobertaHubInterface(argparse.Namespace(), task, model, None)
    assert hub.fill_mask("w1 <mask> w2", topk=1)[0].token == task.source_dictionary[9]
    model.register_classification_head("head", 3)
    own = Hub(argparse.Namespace(), task, model, None).predict("head", torch.tensor([0, 5, 2]), return_logits=True)
    torch.testing.assert_close(own, model.classification_heads["head"](torch.ones(1, 3, 12)))


def test_the_hub_asks_a_task_about_pronouns() -> None:
    task: Any = Task()
    task.disambiguate_pronoun = lambda model, sentence, use_cuda: (model.training, sentence, use_cuda)
    hub = RobertaHubInterface(argparse.Namespace(), task, model_with(), None)
    assert hub.disambiguate_pronoun("He saw [him].") == (False, "He saw [him].", False) and hub.model.training


def test_tasks_of_old_plugins() -> None:
    class Old(FairseqTask):
        def __init__(self) -> None:  # the original's constructor did not have to be called
            self.built: list[Any] = []

        def build_model(self, args):  # type: ignore[no-untyped-def, override]
            self.built.append(args)
            return "model"

        def aggregate_logging_outputs(self, logging_outputs, criterion):  # type: ignore[no-untyped-def, override]
            return {"total": sum(output["loss"] for output in logging_outputs), "ntokens": 1}

    from fairseq.logging import metrics

    task = Old()
    assert build_stored_model(task, "cfg") == "model" and task.built == ["cfg"]
    assert task.state_dict() == {} and task.get_checkpoint_dict() == {}
    task.load_state_dict({"anything": 1})
    with metrics.aggregate(new_root=True) as meters:
        task.reduce_metrics([{"loss": 2.0}, {"loss": 3.0}], None)
    assert meters.get_smoothed_values() == {"total": 5.0}


def test_the_averaged_model_is_given_to_tasks_that_want_it() -> None:
    ema = SimpleNamespace(get_model=lambda: "averaged")

    def given(**task: Any) -> dict[str, Any]:
        return Trainer._ema_argument(SimpleNamespace(ema=ema, task=SimpleNamespace(**task)))  # type: ignore[arg-type]

    assert given(uses_ema=True) == {"ema_model": "averaged"} and given(uses_ema=False) == {} == given()
    assert FairseqTask.uses_ema is False


def test_flags_of_a_subclass_that_is_registered_without_settings() -> None:
    registry: Registry[Any] = Registry("criterion")

    @registry.register("own", base=FairseqCriterion)
    class Own(SentencePredictionCriterion):
        pass

    parser = argparse.ArgumentParser()
    Own.add_args(parser)
    assert parser.parse_args([]).classification_head_name == "sentence_classification_head"
    cfg = parser.parse_args(["--classification-head-name", "other"])
    task = SimpleNamespace(cfg=SimpleNamespace(num_classes=3), target_dictionary=None)
    assert Own.build_criterion(cfg, task).classification_head_name == "other"  # type: ignore[attr-defined]


def test_a_model_of_a_plugin_over_the_encoder() -> None:
    class Tagger(FairseqEncoderModel):
        def forward(self, src_tokens, words=None, **kwargs):  # type: ignore[no-untyped-def, override]
            return self.encoder(src_tokens, words=words, **kwargs)

    class Plain(FairseqEncoderModel):
        pass

    encoder: FairseqEncoder = RobertaEncoder(argparse.Namespace(**SIZES), Task().source_dictionary)
    assert Plain(encoder) and encoder.refuses_unused
    assert Tagger(encoder)(some_tokens(2), words=3)[0].shape == (2, 9, 31)
