"""BiGS against the reference programs: hidden states, logits, losses, gradients, heads, padding that leaks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fairseq.interop.bigs import INSIDE, OUTSIDE
from fairseq.layout import layout_of_tokens
from fairseq.models.roberta import RobertaModel
from fairseq.modules.task_heads import pool
from tests.bigs import STEP, converted, flax_folder, golden, our_rows, torch_folder, torch_name

GOLDEN, ROWS = golden(), our_rows()
LIMITS = {torch.float64: 1e-10, torch.float32: 1e-4}
TYPES = pytest.mark.parametrize("dtype", LIMITS, ids=["f64", "f32"])
FORMAT = {"torch": "bigs-torch", "flax1": "bigs-flax", "flax0": "bigs-flax"}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, RobertaModel]:
    """The model as PyTorch has it, and as Flax has it, pre-norm (1) and post-norm (0)."""
    home = tmp_path_factory.mktemp("bigs")
    folders = {
        "torch": torch_folder(home / "torch"),
        "flax1": flax_folder(home / "flax1"),
        "flax0": flax_folder(home / "flax0", pre_norm=False),
    }
    return {name: converted(FORMAT[name], folder, home / f"{name}-out").model for name, folder in folders.items()}


def batch(name: str) -> tuple[Tensor, Tensor, dict[str, Tensor], Tensor]:
    """Our ids, labels, further inputs, and what is no padding; ``padmax`` is ``pad`` with padding up to 48."""
    source, more = ("pad", 12) if name == "padmax" else (name, 0)
    ids, labels, mask = (GOLDEN[f"{source}.{key}"] for key in ("input_ids", "labels", "attention_mask"))
    given = {
        key: GOLDEN[f"{source}.{key}"] for key in ("token_type_ids", "position_ids") if f"{source}.{key}" in GOLDEN
    }
    labels = F.pad(labels, (0, more), value=-100)
    return (
        ROWS[F.pad(ids, (0, more))],
        labels,
        {k: F.pad(v, (0, more)) for k, v in given.items()},
        F.pad(mask, (0, more)).bool(),
    )


def close(found: Tensor, wanted: Tensor, limit: float, real: Tensor | None = None) -> None:
    found, wanted = (x.detach().double() if real is None else x.detach().double()[real] for x in (found, wanted))
    torch.testing.assert_close(found, wanted, rtol=0, atol=limit)


def our_name(theirs: str) -> str:
    if ".encoder.layer." in theirs:
        number, _, within = theirs.partition(".encoder.layer.")[2].partition(".")
        start = next(start for start in INSIDE if within.startswith(start))
        return f"encoder.sentence_encoder.layers.{number}.{INSIDE[start]}{within.removeprefix(start)}"
    start = next(start for start in OUTSIDE if theirs.startswith(start))
    return OUTSIDE[start] + theirs.removeprefix(start)


@TYPES
@pytest.mark.parametrize(
    "case", ["torch.full", "torch.pad", "torch.short", "flax1.full", "flax1.padmax", "flax0.full", "flax0.padmax"]
)
def test_numbers_of_the_reference(models: dict[str, RobertaModel], case: str, dtype: torch.dtype) -> None:
    kind, _, name = case.partition(".")
    model, limit = models[kind].to(dtype), LIMITS[dtype]
    ids, labels, given, real = batch(name)
    with torch.no_grad():
        for mask in ({}, {"padding_mask": ~real}) if ids.eq(1).any() else ({},):
            logits, extra = model(ids, return_all_hiddens=True, **given, **mask)
            if f"{case}.logits" in GOLDEN:
                close(logits[..., ROWS][..., ::STEP], GOLDEN[f"{case}.logits"], limit, real)
            for state, wanted in zip(extra["inner_states"], GOLDEN.get(f"{case}.hidden", []), strict=False):
                close(state.transpose(0, 1)[..., ::STEP], wanted, limit, real)
            labelled = labels != -100
            targets = ROWS[labels[labelled]]
            loss = model(ids, masked_tokens=labelled, masked_targets=targets, **given, **mask)[0] / labelled.sum()
            close(loss, GOLDEN[f"{case}.loss"], limit)


@TYPES
@pytest.mark.parametrize("case", ["torch.full", "torch.pad", "flax1.full", "flax0.full"])
def test_gradients_of_the_reference(models: dict[str, RobertaModel], case: str, dtype: torch.dtype) -> None:
    kind, _, name = case.partition(".")
    model = models[kind].to(dtype)
    ids, labels, given, _ = batch(name)
    labelled = labels != -100
    model.zero_grad()
    loss = model(ids, masked_tokens=labelled, masked_targets=ROWS[labels[labelled]], **given)[0] / labelled.sum()
    loss.backward()
    parameters = dict(model.named_parameters())
    start = f"{kind}.grad." + (f"{name}." if kind == "torch" else "")
    wanted = {key.removeprefix(start): value for key, value in GOLDEN.items() if key.startswith(start)}
    if kind == "torch":
        assert {our_name(key) for key in wanted} == set(parameters)
    for key, sketch in wanted.items():
        ours = our_name(key if kind == "torch" else torch_name(key))
        grad = parameters[ours].grad
        assert grad is not None
        in_order = grad[ROWS] if ours.endswith(("embed_tokens.weight", "lm_head.bias")) else grad
        flat = (in_order.t() if in_order.dim() == 2 and key.endswith("kernel") else in_order).double().flatten()
        found = torch.stack([flat.norm(), flat @ torch.cos(torch.arange(len(flat)).double() * 1.7 + 0.3)])
        close(found, sketch, LIMITS[dtype] * max(1.0, float(sketch[0])) * (1 if dtype is torch.float64 else 2))
        if ours.endswith("A_re"):
            assert grad[:2].eq(0).all(), "beyond the clip there is no gradient"


@pytest.mark.parametrize("length", [12, 20, 48])
def test_padding_leaks_as_in_the_reference(models: dict[str, RobertaModel], length: int) -> None:
    ids = ROWS[F.pad(GOLDEN["leak.tokens"], (0, length - 12))]
    model = models["torch"].double()
    with torch.no_grad():
        close(model(ids)[0][:, :12, ROWS][..., ::STEP], GOLDEN[f"leak{length}"], 1e-10)
        # The last layer computes only what is read, and nothing is packed.
        where = (torch.arange(length) < 12)[None]
        close(model(ids, masked_tokens=where)[0][:, ROWS][None, :, ::STEP], GOLDEN[f"leak{length}"], 1e-10)


def test_inputs_that_are_padded_in_full(tmp_path: Path) -> None:
    """Whatever the padding of a batch, outputs are those of the reference at the length of the model, 48."""
    model = converted("bigs-flax", flax_folder(tmp_path / "in"), tmp_path / "out", bigs_padding="full").model.double()
    ids, _, given, real = batch("pad")
    wanted = GOLDEN["flax1.padmax.logits"][:, :36]
    with torch.no_grad():
        for more in (0, 5, 12):
            inputs = {key: F.pad(value, (0, more)) for key, value in given.items()}
            logits, extra = model(F.pad(ids, (0, more), value=1), return_all_hiddens=True, **inputs)
            close(logits[:, :36, ROWS][..., ::STEP], wanted, 1e-10, real)
            assert {len(state) for state in extra["inner_states"]} == {36 + more} == {logits.size(1)}
        positions = torch.arange(36).expand_as(ids)
        logits = model(ids, position_ids=positions, padding_mask=~real, **given)[0]
        close(logits[..., ROWS][..., ::STEP], wanted, 1e-10, real)
        # What is predicted is found by a mask, and by places in the batch that a layout knows.
        places = real.flatten().nonzero().squeeze(1)
        layout = layout_of_tokens(ids, 1, torch.where(real, ids, 1))
        for where in ({"masked_tokens": real}, {"masked_tokens": places, "layout": layout}):
            assert torch.allclose(model(ids, **where, **given)[0], model(ids, **given)[0][real], atol=1e-12)


KINDS = {
    "seqcls3": "SequenceClassification", "seqreg1": "SequenceClassification", "seqmulti4": "SequenceClassification",
    "tokcls5": "TokenClassification", "qa": "QuestionAnswering", "mc3": "MultipleChoice",
}  # fmt: skip


def headed(name: str, folder: Path) -> Path:
    more = {"bigs.pooler.dense.weight": GOLDEN["pooler.weight"], "bigs.pooler.dense.bias": GOLDEN["pooler.bias"]}
    start = f"heads.{name}."
    more |= {
        key.removeprefix(start): GOLDEN[key]
        for key in GOLDEN
        if key.startswith((f"{start}classifier.", f"{start}qa_outputs."))
    }
    return torch_folder(folder, more, architectures=[f"BiGSFor{KINDS[name]}"])


@TYPES
@pytest.mark.parametrize("name", KINDS)
def test_heads_of_the_reference(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model, limit = (
        converted("bigs-torch", headed(name, tmp_path / "source"), tmp_path / "out").model.to(dtype),
        LIMITS[dtype],
    )
    ids, types, real = (
        GOLDEN[f"heads.{name}.{key}"].flatten(0, -2) for key in ("input_ids", "token_type_ids", "attention_mask")
    )
    (head,) = model.classification_heads
    with torch.no_grad():
        found = model(ROWS[ids], classification_head_name=head, token_type_ids=types)[0]
    if name == "qa":
        for column, part in enumerate(("start", "end")):
            close(found[..., column], GOLDEN[f"heads.qa.{part}_logits"], limit, real.bool())
    elif name == "tokcls5":
        close(found, GOLDEN["heads.tokcls5.logits"], limit, real.bool())
    else:
        close(found.reshape(GOLDEN[f"heads.{name}.logits"].shape), GOLDEN[f"heads.{name}.logits"], limit)


@TYPES
def test_poolers_of_the_reference(dtype: torch.dtype, tmp_path: Path) -> None:
    source = headed("seqcls3", tmp_path / "source")
    model = converted("bigs-torch", source, tmp_path / "out").model.to(dtype)
    head: Any = model.classification_heads["sentence_classification_head"]
    with torch.no_grad():
        features = model.extract_features(
            ROWS[GOLDEN["heads.seqcls3.input_ids"]], token_type_ids=GOLDEN["heads.seqcls3.token_type_ids"]
        )[0]
        for ours, theirs in (("mean", "mean"), ("masked_mean", "non_padding_mean")):
            pooled = torch.tanh(head.dense(pool(features, ours, ~GOLDEN["heads.seqcls3.attention_mask"].bool())))
            close(pooled, GOLDEN[f"heads.pool_{theirs}.pooler_output"], LIMITS[dtype])
    model = converted("bigs-torch", source, tmp_path / "out", bigs_activation="gelu_accurate").model.to(dtype)
    head = model.classification_heads["sentence_classification_head"]
    ids, _, given, _ = batch("padmax")
    with torch.no_grad():
        for head.pooling in ("mean", "masked_mean"):
            logits = model(ids, classification_head_name="sentence_classification_head", **given)[0]
            close(logits, GOLDEN[f"flax.seqcls3.{head.pooling}"], LIMITS[dtype])


@pytest.mark.parametrize("method", ["fft", "chunks"])
def test_masked_models_do_not_see_padding(method: str, tmp_path: Path) -> None:
    """With the golden model's weights, whose outputs change by ten where padding leaks."""
    source = torch_folder(tmp_path / "source")
    settings = {"bigs_padding": "masked", "bigs_method": method}
    model = converted("bigs-torch", source, tmp_path / "out", **settings).model.double()
    tokens = ROWS[GOLDEN["leak.tokens"]]
    with torch.no_grad():
        alone = model(tokens)[0]
        for width in (18, 48):
            padded = F.pad(tokens, (0, width - 12), value=1)
            together = torch.cat([padded, F.pad(tokens[:, 3:8], (0, width - 5), value=1)])
            for ids in (padded, together):
                close(model(ids)[0][:1, :12], alone, 1e-9)
                close(model(ids, masked_tokens=ids.ne(1))[0][:12], alone[0], 1e-9)  # packed
