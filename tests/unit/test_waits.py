"""How often an update waits for the device: once, and once more where a number is printed.

Whole updates of the trainer on a device of fake tensors, in every precision, padded and not; see `tests.fake_device`.
"""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily

from fairseq.criterions.masked_lm import MaskedLmLoss
from fairseq.criterions.sentences import SentencePredictionCriterion, SentenceRankingCriterion
from fairseq.criterions.tokens import QuestionAnsweringCriterion, TokenClassificationCriterion
from fairseq.layout import IGNORED, Layout, with_layouts
from fairseq.logging import metrics
from fairseq.logging.progress import format_stat
from fairseq.modules import attention_backends, score_tables
from fairseq.modules.encoder import EncoderLayer
from fairseq.registry import LM_HEADS, OPTIMIZERS
from fairseq.tree import map_tensors
from tests.fake_device import Task, Waits, fake_cuda, fake_trainer, waits_of_updates
from tests.unit.roberta import KINDS, PAD, small_model
from tests.unit.test_packing import seen

pytestmark = pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")  # by a deep copy

B, T = 4, 16
SMALL = {"encoder_layers": 2, "encoder_attention_heads": 2, "max_positions": T}


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch):
    # What is tried on a device can only fail on this one; the kernels behind the other ways are not the question.
    monkeypatch.setattr(attention_backends, "works_like_eager", lambda *unused: False)
    with fake_cuda(monkeypatch):
        yield


def tokens(padded: bool) -> Tensor:
    ids = torch.arange(4, 4 + B * T).view(B, T) % 20 + 4
    if padded:
        ids[0, -5:] = ids[1, -9:] = PAD
    return ids


def inputs(padded: bool) -> dict[str, Tensor]:
    ids = tokens(padded)
    return {"src_tokens": ids, "src_lengths": ids.ne(PAD).sum(1)}


def sample_of(padded: bool, **more: Any) -> dict[str, Any]:
    return {"net_input": inputs(padded), "ntokens": B * T, "nsentences": B, "id": torch.arange(B), **more}


@unset_fake_temporarily()  # the collater's side
def masked_sample(padded: bool) -> dict[str, Any]:
    target = torch.where(torch.arange(T) % 5 == 1, tokens(padded), PAD)
    return with_layouts(sample_of(padded, target=target), PAD, predicts_tokens=True)


def masked_lm_trainer(mode: str = "bf16", arch: str = "roberta_alibi", **values: Any):
    return fake_trainer(mode, arch, MaskedLmLoss(None, Task()), **SMALL | values)


def waits_of_printing() -> Waits:
    with Waits() as waits:
        for value in metrics.get_smoothed_values("train_inner").values():
            format_stat(value)
    return waits


@pytest.mark.parametrize("mode", ["fp32", "bf16", "fp16", "amp"])
@pytest.mark.parametrize("arch", KINDS)
def test_an_update_waits_once_and_printing_once_more(arch: str, mode: str, device: None):
    trainer = masked_lm_trainer(mode, arch)
    waits_of_updates(trainer, [masked_sample(False)], 1)  # tables and slopes go to the device
    for padded in (False, True):
        waits = waits_of_updates(trainer, [masked_sample(padded)], 1)
        assert len(waits.lines) == 1 and "isfinite" in waits.lines[0], waits.report()
    waits = waits_of_printing()
    assert len(waits.lines) == 1, waits.report()


@pytest.mark.parametrize("backend", ["eager", "sdpa", "fused", "triton"])
def test_every_backend(backend: str, device: None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(attention_backends.flash, "runs", lambda q: True)
    trainer = masked_lm_trainer(attention_backend=backend)
    with seen(trainer.model) as shapes:
        waits = waits_of_updates(trainer, [masked_sample(True)])
    assert len(waits.lines) == 1, waits.report()
    # Packed where the kernel finds the sequences by itself.
    assert (shapes[0][0] == 1) == (backend == "triton")


def test_packed_where_triton_works(device: None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(attention_backends, "works_like_eager", lambda name, *unused: name == "triton")
    monkeypatch.setattr(attention_backends.flash, "runs", lambda q: True)
    for mode in ("bf16", "amp"):
        trainer = masked_lm_trainer(mode)
        with seen(trainer.model) as shapes:
            waits = waits_of_updates(trainer, [masked_sample(True)])
        assert len(waits.lines) == 1, waits.report()
        assert shapes[0] == (1, B * T - 5 - 9, 12)


@pytest.mark.parametrize("arch", ["roberta_conv", "roberta_conv_depthwise", "roberta_convbert"])
def test_convolutional_attention_is_packed_too(arch: str, device: None, monkeypatch: pytest.MonkeyPatch):
    for module in (attention_backends, score_tables):
        monkeypatch.setattr(module, "works_like_eager", lambda name, *unused: name.startswith("triton"))
    monkeypatch.setattr(attention_backends.flash, "runs", lambda q: True)
    trainer = masked_lm_trainer("bf16", arch)
    waits_of_updates(trainer, [masked_sample(False)], 1)
    with seen(trainer.model) as shapes:
        waits = waits_of_updates(trainer, [masked_sample(True)])
    assert len(waits.lines) == 1, waits.report()
    assert shapes[0] == (1, B * T - 5 - 9, 12)


@pytest.mark.parametrize(
    "values",
    [
        {"encoder_learned_pos": False},
        {"untie_weights_roberta": True},
        {"encoder_layerdrop": 0.5},
        {"checkpoint_activations": True},
        {"type_vocab_size": 2},
    ],
    ids=lambda values: next(iter(values)),
)
def test_other_models(values: dict[str, Any], device: None):
    waits = waits_of_updates(masked_lm_trainer("bf16", "roberta", **values), [masked_sample(True)])
    assert len(waits.lines) == 1, waits.report()


@pytest.mark.parametrize("head", LM_HEADS.registered())
def test_every_head(head: str, device: None):
    for padded in (False, True):
        waits = waits_of_updates(masked_lm_trainer("bf16", "roberta", lm_head=head), [masked_sample(padded)])
        assert len(waits.lines) == 1, waits.report()


@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("fp32", {"ema": True}),
        ("bf16", {"ema": True}),
        ("bf16", {"memory_efficient": True}),
        ("fp16", {"memory_efficient": True}),
    ],
    ids=str,
)
def test_other_updates(mode: str, options: dict[str, Any], device: None):
    waits = waits_of_updates(masked_lm_trainer(mode, options=options), [masked_sample(False)])
    assert len(waits.lines) == 1, waits.report()


OTHER_OPTIMIZERS = {
    **{name: {} for name in ("adamw", "sgd", "adagrad", "adadelta", "adamax", "nag", "lamb", "adafactor")},
    "adafactor scaled": {"scale_parameter": True, "weight_decay": 0.1},
    "adafactor relative": {"scale_parameter": True, "relative_step": True, "beta1": 0.9},
    "nag with momentum": {"momentum": 0.9, "weight_decay": 0.1},
    "lamb without decay": {"weight_decay": 0.0},
}


@pytest.mark.parametrize("mode", ["fp32", "bf16"])
@pytest.mark.parametrize("what", OTHER_OPTIMIZERS)
def test_other_optimizers(what: str, mode: str, device: None):
    name = what.split()[0]
    section = OPTIMIZERS.config_class(name)(_name=name, lr=[0.01], **OTHER_OPTIMIZERS[what])
    waits = waits_of_updates(masked_lm_trainer(mode, options={"optimizer": section}), [masked_sample(False)])
    assert len(waits.lines) == 1 and "isfinite" in waits.lines[0], waits.report()


@pytest.mark.parametrize("mode", ["fp32", "bf16", "fp16", "amp"])
def test_sparse_updates(mode: str, device: None):
    waits = waits_of_updates(masked_lm_trainer(mode, "roberta_fff", options={"sparse": True}), [masked_sample(False)])
    assert len(waits.lines) == 1, waits.report()


def test_validation_does_not_wait(device: None):
    trainer = masked_lm_trainer()
    trainer.valid_step(masked_sample(True))
    with Waits() as waits:
        trainer.valid_step(masked_sample(True))
    assert not waits.lines, waits.report()


def test_statistics_are_read_when_somebody_looks(device: None):
    trainer = masked_lm_trainer()
    with Waits() as waits:
        statistics = trainer.train_step([masked_sample(False)])
        before = len(waits.lines)
        assert {"loss", "ppl", "sample_size"} <= statistics.keys() and statistics["loss"] == 1
    assert len(waits.lines) == before + 1, waits.report()


def test_micro_batches_do_not_wait(device: None):
    trainer = masked_lm_trainer()
    waits = waits_of_updates(trainer, [masked_sample(False), masked_sample(True), masked_sample(True)])
    assert len(waits.lines) == 1, waits.report()


@pytest.mark.parametrize("backend", ["eager", "sdpa", "fused", "triton"])
@pytest.mark.parametrize("arch", ["roberta", "roberta_alibi", "roberta_zero_clap"])
def test_the_backward_pass_does_not_wait(arch: str, backend: str, monkeypatch: pytest.MonkeyPatch):
    """On meta tensors: torch does not go backward through those of a device that is not there."""
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: False)  # of which meta tensors know nothing
    monkeypatch.setattr(torch, "autocast", lambda device, enabled: nullcontext())
    sizes = {**SMALL, "attention_backend": backend}
    with torch.device("meta"):
        model = small_model(arch, **sizes)
        model(torch.zeros(1, 2, dtype=torch.int64), layout=Layout(padded=False))  # sends the slopes
    sample = map_tensors(lambda tensor: tensor.to("meta"), masked_sample(True))
    with Waits("meta") as waits:
        loss = MaskedLmLoss(None, Task())(model, sample)[0]
        loss.backward()
    assert not waits.lines, waits.report()
    assert all(parameter.grad is not None for parameter in model.parameters())


NAME = "head"
WORDS = (torch.arange(T) % 3 == 1).expand(B, T)
TASKS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "classes": (
        lambda: sentence_prediction(),
        lambda model: model.register_classification_head(NAME, num_classes=3),
        {"target": torch.arange(B).unsqueeze(1) % 3},
    ),
    "masked mean": (
        lambda: sentence_prediction(),
        lambda model: masked_mean_head(model),
        {"target": torch.arange(B).unsqueeze(1) % 3},
    ),
    "regression": (
        lambda: sentence_prediction(regression_target=True),
        lambda model: model.register_classification_head(NAME, num_classes=1),
        {"target": torch.rand(B, 1)},
    ),
    "several labels": (
        lambda: sentence_prediction(multi_label=True),
        lambda model: model.register_classification_head(NAME, num_classes=3),
        {"target": torch.ones(B, 3)},
    ),
    "choices": (
        lambda: SentenceRankingCriterion(Task(), NAME, 2),
        lambda model: model.register_classification_head(NAME, num_classes=1),
        {"target": torch.arange(B) % 2, "net_input1": inputs(True), "net_input2": inputs(True)},
    ),
    "spans": (
        lambda: QuestionAnsweringCriterion(None, task(span_candidates=None)),
        lambda model: model.register_span_head(NAME),
        {"target": torch.zeros(B, 2, dtype=torch.int64)},
    ),
    "words": (
        lambda: TokenClassificationCriterion(None, task(word_labels=None)),
        lambda model: model.register_token_head(NAME, 5),
        {"target": torch.where(WORDS, 2, IGNORED), "words": WORDS.clone()},
    ),
}


def task(**more: Any) -> Task:
    made = Task()
    vars(made).update(head_name=NAME, **more)
    return made


def sentence_prediction(multi_label: bool = False, regression_target: bool = False) -> SentencePredictionCriterion:
    cfg = SimpleNamespace(classification_head_name=NAME, regression_target=regression_target)
    return SentencePredictionCriterion(cfg, task(multi_label=multi_label, cfg=SimpleNamespace(num_classes=3)))


def masked_mean_head(model: Any) -> None:
    model.register_classification_head(NAME, num_classes=3)
    model.classification_heads[NAME].pooling = "masked_mean"


@unset_fake_temporarily()
def fine_tuning_sample(more: dict[str, Any], types: bool) -> dict[str, Any]:
    sample = sample_of(True, **more)
    for name, net_input in sample.items():
        if types and name.startswith("net_input"):
            sample[name] = {**net_input, "token_type_ids": torch.ones(B, T, dtype=torch.int64)}
    return with_layouts(sample, PAD)


@pytest.mark.parametrize("types", [False, True], ids=["", "types"])
@pytest.mark.parametrize("name", TASKS)
def test_fine_tuning(name: str, types: bool, device: None):
    criterion, prepare, more = TASKS[name]
    values = {"type_vocab_size": 2} if types else {}
    trainer = fake_trainer("fp32", "roberta", criterion(), prepare, **SMALL, **values)
    waits = waits_of_updates(trainer, [fine_tuning_sample(more, types)])
    assert len(waits.lines) == 1, waits.report()
    waits = waits_of_printing()
    assert len(waits.lines) == 1, waits.report()


# ---- the watcher itself ----------------------------------------------------------------------------------------------


def test_a_number_that_a_layer_reads_is_found(device: None, monkeypatch: pytest.MonkeyPatch):
    forward = EncoderLayer.forward

    def curious(self: EncoderLayer, x: Tensor, context: Any) -> Tensor:
        x.abs().max().item()
        return forward(self, x, context)

    monkeypatch.setattr(EncoderLayer, "forward", curious)
    waits = waits_of_updates(masked_lm_trainer(), [masked_sample(False)])
    assert len(waits.lines) == 1 + SMALL["encoder_layers"]
    assert sum("/modules/encoder.py" in line for line in waits.lines) == SMALL["encoder_layers"]


def test_without_layouts_the_device_is_asked(device: None):
    sample = {key: value for key, value in masked_sample(True).items() if key != "layouts"}
    waits = waits_of_updates(masked_lm_trainer(), [sample])
    assert len(waits.lines) == 4 and "isfinite" in waits.lines[-1], waits.report()


WAITING = {
    "item": lambda x: x.sum().item(),
    "bool": lambda x: bool(x.sum() > 0),
    "float": lambda x: float(x[0, 0]),
    "list": lambda x: x.sum(1).tolist(),
    "any": lambda x: bool((x > 0).any()),
    "nonzero": lambda x: (x > 0).nonzero(),
    "mask": lambda x: x[x > 0],
    "equal": lambda x: torch.equal(x, x + 1),
    "to the CPU": lambda x: x.cpu(),
    "made on the CPU": lambda x: torch.tensor([1.0, 2.0], device=x.device),
    "sent": lambda x: torch.ones(2).to(x.device),
    "sent from memory that is not pinned": lambda x: torch.ones(2).to(x.device, non_blocking=True),
    "copied": lambda x: x[0].copy_(torch.ones(3)),
}
NOT_WAITING = {
    "sums": lambda x: x.sum() / x.numel(),
    "made there": lambda x: torch.arange(3, device=x.device) + torch.full((), 2.0, device=x.device),
    "where": lambda x: torch.where(x > 0, x, 0.0),
    "rows": lambda x: x.index_select(0, torch.zeros(2, dtype=torch.int64, device=x.device)),
    "random": lambda x: torch.rand(3, device=x.device),
}


@pytest.mark.parametrize("name", [*WAITING, *NOT_WAITING])
def test_what_waits(name: str, device: None):
    x = torch.zeros(2, 3, device="cuda")
    with Waits() as waits:
        (WAITING | NOT_WAITING)[name](x)
    assert bool(waits.lines) == (name in WAITING), waits.report()
