"""Where plugins meet the package: names that they take over, state that their tasks store, words by characters."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch

from fairseq.checkpoint.schema import build_state
from fairseq.data.encoders.base import build_bpe
from fairseq.data.encoders.configs import GPT2BPEConfig
from fairseq.errors import ConfigError, DataError
from fairseq.models.roberta import RobertaHubInterface
from fairseq.models.roberta.alignment_utils import (
    align_bpe_to_words,
    align_features_to_words,
    align_sentence,
    overlaps,
    split_words,
)
from fairseq.registry import PLUGINS, Builtin, Registry, loading_plugin
from fairseq.training import loop, run
from tests.downstream import TINY, dictionary_of_ids


def test_only_a_plugin_of_user_dir_may_replace_a_builtin(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry: Registry[Any] = Registry("task", {"one": Builtin("somewhere.inside", "somewhere:Config")})
    own = type("Own", (), {"__module__": "someones.plugin"})
    with pytest.raises(ConfigError, match="built in.*only a plugin given by --user-dir may replace"):
        registry.register("one")(own)
    monkeypatch.setattr("fairseq.registry.PLUGINS", {*PLUGINS, "someones"})
    with caplog.at_level(logging.WARNING):
        registry.register("one")(own)
    assert "task 'one' is now someones.plugin.Own, which takes the place of the built-in one" in caplog.text
    assert registry.get("one") is own and registry.config_class("one") is None and registry.names() == ["one"]
    built_in = type("One", (), {"__module__": "somewhere.inside"})
    assert registry.register("one", dataclass=int)(built_in) is built_in  # imported later
    assert registry.get("one") is own and registry.config_class("one") is None
    with pytest.raises(ConfigError, match="registered twice: by someones.plugin.Own and by someones.plugin.Other"):
        registry.register("one")(type("Other", (), {"__module__": "someones.plugin"}))


def test_what_a_plugin_imports_from_elsewhere_is_a_plugin_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fairseq.registry.PLUGINS", set(PLUGINS))
    registry: Registry[Any] = Registry("task", {"one": Builtin("somewhere.inside")})
    elsewhere = type("Own", (), {"__module__": "a_library.tasks"})
    with loading_plugin("user_dir"):
        registry.register("one")(elsewhere)
    assert registry.get("one") is elsewhere
    with pytest.raises(ZeroDivisionError), loading_plugin("broken"):
        raise ZeroDivisionError
    from fairseq import registry as module

    assert "user_dir" in module.PLUGINS and "broken" not in module.PLUGINS


class Remembering:
    """A task with the hooks of the original that not every task has."""

    def __init__(self) -> None:
        self.got: Any = None
        self.evaluated: list[Any] = []

    def set_checkpoint_dict(self, state: Any) -> None:
        self.got = state


def test_what_a_task_stores_comes_back() -> None:
    state = {(4, 16, "observer"): {"mod1": 1}}
    parts: dict[str, Any] = dict.fromkeys(
        "classes lr_scheduler_state num_updates meters training_time best early_stop model task optimizer".split()
    )
    parts |= {"classes": {}, "optimizer_history": [], "task_extra": {"Remembering": state}}
    saved = build_state({}, parts, {"epoch": 2, "iterations_in_epoch": 0}, None)
    assert saved["extra_state"]["Remembering"] == state
    trainer = MagicMock(task=Remembering())
    trainer.load_checkpoint.return_value = saved["extra_state"]
    cfg = SimpleNamespace(
        reset_optimizer=False, reset_lr_scheduler=False, reset_meters=False, reset_dataloader=False,
        finetune_from_model=None, restore_file="checkpoint_last.pt", save_dir="nowhere", optimizer_overrides="{}",
    )  # fmt: skip
    run.load_checkpoint(cfg, trainer)  # type: ignore[arg-type]
    assert trainer.task.got == state
    arguments, words = trainer.load_checkpoint.call_args
    assert arguments == ("nowhere/checkpoint_last.pt", False, False, {}) and words == {"reset_meters": False}
    cfg.reset_dataloader, trainer.task = True, Remembering()
    run.load_checkpoint(cfg, trainer)  # type: ignore[arg-type]
    assert trainer.task.got is None


def test_a_task_may_look_at_the_model_after_validation(monkeypatch: pytest.MonkeyPatch) -> None:
    def post_validate(model: Any, stats: dict[str, Any], meters: Any) -> None:
        stats["own"] = 3.0

    printed: list[dict[str, Any]] = []
    bar = MagicMock(__iter__=lambda self: iter([]), print=lambda stats, **kw: printed.append(stats))
    monkeypatch.setattr(loop, "progress_of", lambda *a, **kw: bar)
    trainer = MagicMock(task=SimpleNamespace(post_validate=post_validate), store=MagicMock(best=None))
    stats = loop._validate_subset(MagicMock(), trainer, 1, "valid", track_best=True)
    assert stats["own"] == 3.0 and printed == [stats]


TEXTS = {
    "It’s “fine” — don’t worry 😀👍🏽 ok": ["It’s", "“fine”", "—", "don’t", "worry", "😀👍🏽", "ok"],
    "trailing blanks   ": ["trailing", "blanks"],
    "  leading and  double": ["leading", "and", "double"],
    "日本語 テスト": ["日本語", "テスト"],
    "e\u0301clair naïve\u00a0x": ["e\u0301clair", "naïve", "x"],
}


@pytest.fixture
def hub(tmp_path: Any) -> Any:
    from fairseq.data.dictionary import Dictionary

    config: Any = GPT2BPEConfig(gpt2_encoder_json=str(TINY / "encoder.json"), gpt2_vocab_bpe=str(TINY / "vocab.bpe"))
    config._name = "gpt2"
    dictionary = Dictionary.load(str(dictionary_of_ids(tmp_path)))

    class Features(torch.nn.Module):
        encoder = None

        def forward(self, tokens, features_only=False, return_all_hiddens=False):  # type: ignore[no-untyped-def]
            generator = torch.Generator().manual_seed(0)
            return torch.randn(*tokens.shape, 3, generator=generator), {}

        def max_positions(self) -> int:
            return 100

    task = SimpleNamespace(source_dictionary=dictionary)
    return RobertaHubInterface(SimpleNamespace(), task, Features(), build_bpe(config))


@pytest.mark.parametrize("text", TEXTS)
def test_words_are_found_by_their_characters(hub: Any, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)  # without spaCy
    words, ids = TEXTS[text], hub.encode(text)
    spans, _ = split_words(text)
    alignment = align_sentence(hub.bpe, text, spans)
    assert alignment == align_bpe_to_words(hub, ids, words), "by the text or by what the pieces decode to"
    assert sorted({place for places in alignment for place in places}) == list(range(1, len(ids) - 1))
    aligned = hub.extract_features_aligned_to_words(text)
    assert [word.text for word in aligned] == ["<s>", *words, "</s>"]
    features = hub.extract_features(ids)[0]
    torch.testing.assert_close(torch.stack([word.vector for word in aligned]).sum(0), features.sum(0))
    for word, places in zip(aligned[1:-1], alignment, strict=True):
        torch.testing.assert_close(word.vector, features[places].sum(0))


def test_pieces_that_words_share(hub: Any) -> None:
    assert overlaps([(0, 2), (3, 3), (3, 6), (8, 8)], [(0, 2), (3, 5), (5, 6)]) == [[1], [2, 3], [3, 4]]
    ids = hub.encode("don’t")
    alignment = align_bpe_to_words(hub, ids, ["do", "n’t"])
    features = torch.randn(len(ids), 4)
    torch.testing.assert_close(align_features_to_words(hub, features, alignment).sum(0), features.sum(0))
    with pytest.raises(DataError, match="there are no words"):
        align_sentence(hub.bpe, "  ", [])
