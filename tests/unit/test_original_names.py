"""Names of the original are answered as such: built, or refused with their field, never taken for typing errors."""

from __future__ import annotations

import pytest

from fairseq.dataclass.build import build_config
from fairseq.errors import ConfigError, OutOfScopeError
from fairseq.registry import (
    ARCHITECTURES,
    BPES,
    CRITERIONS,
    LR_SCHEDULERS,
    MODELS,
    OPTIMIZERS,
    SCORERS,
    TASKS,
    TOKENIZERS,
    Registry,
)

# What old commands say, by the registry that answers: names that are built, names that are refused.
ORIGINAL: list[tuple[Registry, str, str]] = [
    (
        TASKS,
        "masked_lm multilingual_masked_lm sentence_prediction sentence_ranking commonsense_qa",
        "translation denoising language_modeling legacy_masked_lm cross_lingual_lm audio_pretraining speech_to_text "
        "dummy_masked_lm sentence_prediction_adapters multilingual_denoising wsc nlu_finetuning",
    ),
    (
        CRITERIONS,
        "masked_lm sentence_prediction sentence_prediction_r3f sentence_ranking",
        "cross_entropy adaptive_loss label_smoothed_cross_entropy label_smoothed_cross_entropy_r3f ctc model "
        "composite_loss legacy_masked_lm_loss vocab_parallel_cross_entropy",
    ),
    (
        ARCHITECTURES,
        "roberta roberta_base roberta_large xlm roberta_prenorm",
        "transformer bart_large mbart_large transformer_lm lstm wav2vec2 hubert data2vec_text bert_base linformer_roberta "
        "model_parallel_roberta transformer_lm_gpt2_small",
    ),
    (MODELS, "roberta xlmr camembert gottbert", "transformer masked_lm data2vec_text"),
    (OPTIMIZERS, "adam sgd adagrad adadelta adamax adafactor lamb nag", "composite cpu_adam bmuf"),
    (
        LR_SCHEDULERS,
        "fixed polynomial_decay cosine inverse_sqrt tri_stage triangular step reduce_lr_on_plateau manual pass_through",
        "",
    ),
    (BPES, "gpt2 sentencepiece bert hf_byte_bpe", "fastbpe subword_nmt byte_bpe bytes characters"),
    (TOKENIZERS, "space", "moses nltk"),
    (SCORERS, "", "bleu sacrebleu wer chrf"),
]


@pytest.mark.parametrize("registry, built, refused", ORIGINAL, ids=lambda value: getattr(value, "kind", None))
def test_names_of_the_original(registry: Registry, built: str, refused: str) -> None:
    for name in built.split():
        assert registry.get(name) is not None
    for name in refused.split():
        with pytest.raises(OutOfScopeError, match=rf"^{registry.kind} '{name}' belongs to .*, which is out of scope"):
            registry.get(name)
    with pytest.raises(ConfigError, match="unknown"):
        registry.get("no_such_name")


def test_yaml_says_the_same() -> None:
    for group, name in (("optimizer", "composite"), ("task", "denoising"), ("bpe", "fastbpe"), ("tokenizer", "moses")):
        with pytest.raises(OutOfScopeError, match=f"{name}' belongs to"):
            build_config({group: {"_name": name}, "model": "roberta_base", "optimization": {"lr": [0.1]}})
