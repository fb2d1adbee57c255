"""What this project deliberately does not do, and the sentences that say so.

Known names of tasks, models and criterions, import paths and exported names of the original that are not here: asking
for one raises OutOfScopeError, so that an old plugin hears at once what it cannot have. A few names stand in as stubs
instead, because helper modules of masked-LM tests and plugins import them beside what they use: a stub can be imported
and subclassed, and gives its sentence when it is created or called.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any, NoReturn

from fairseq.errors import OutOfScopeError

HERE = "this fairseq trains and serves masked language models (RoBERTa and its efficient variants)"

# Names that users of the original type, with the field they belong to.
SEQ2SEQ = "sequence-to-sequence modelling and generation"
SPEECH = "speech and audio"
CAUSAL = "causal language modelling"
VISION = "vision and multi-modal modelling"
PRONOUNS = "pronoun disambiguation (Winograd schemas)"


def by_name(fields: dict[str, str]) -> dict[str, str]:
    """Name -> field (or module, ...), of the names that are listed under each."""
    return {name: field for field, names in fields.items() for name in names.split()}


TASKS = by_name(
    {
        SEQ2SEQ: """
            translation translation_lev translation_from_pretrained_bart translation_from_pretrained_xlm
            translation_multi_simple_epoch multilingual_translation semisupervised_translation
            online_backtranslation denoising multilingual_denoising span_masked_lm simultaneous_speech_to_text
            simultaneous_text_to_text
        """,
        SPEECH: """
            audio_pretraining audio_finetuning hubert_pretraining speech_to_text speech_to_speech text_to_speech
            frm_text_to_speech speech_unit_modeling
        """,
        PRONOUNS: "wsc winogrande",
        CAUSAL: "language_modeling multilingual_language_modeling",
        "the legacy XLM/BERT task (use masked_lm)": "legacy_masked_lm cross_lingual_lm",
    }
)
MODELS = by_name(
    {
        SEQ2SEQ: """
            transformer transformer_align transformer_wmt_en_de transformer_iwslt_de_en
            transformer_vaswani_wmt_en_de_big fconv fconv_self_att lstm lightconv bart bart_base bart_large
            mbart_large nonautoregressive_transformer levenshtein_transformer roberta_enc_dec
            multilingual_transformer
        """,
        SPEECH: "wav2vec wav2vec2 wav2vec_ctc hubert hubert_ctc s2t_transformer",
        VISION: "data2vec_audio data2vec_multi",
        CAUSAL: "transformer_lm transformer_lm_gpt fconv_lm lstm_lm lightconv_lm",
        "the legacy XLM/BERT model (use roberta)": "masked_lm",
    }
)
CRITERIONS = by_name(
    {
        SEQ2SEQ: "label_smoothed_cross_entropy label_smoothed_cross_entropy_with_alignment nat_loss latency_augmented",
        SPEECH: "ctc wav2vec hubert tacotron2 fastspeech2",
        CAUSAL: "adaptive_loss cross_entropy",
        PRONOUNS: "wsc winogrande",
        "the legacy XLM/BERT loss (use masked_lm)": "legacy_masked_lm_loss",
    }
)
OPTIMIZERS = by_name(
    {
        "optimizers that divide the parameters of a model among them (use freeze and lr_scales)": "composite",
        "keeping the optimizer's state on the CPU": "cpu_adam",
    }
)
# Import paths of the original.
MODULES = by_name(
    {
        SEQ2SEQ: """
            fairseq.sequence_generator fairseq.sequence_scorer fairseq.search fairseq.iterative_refinement_generator
            fairseq.incremental_decoding_utils fairseq.token_generation_constraints fairseq.ngram_repeat_block
            fairseq.data.noising fairseq.data.backtranslation_dataset fairseq.data.denoising_dataset
            fairseq.data.round_robin_zip_datasets fairseq.data.multilingual fairseq.models.transformer
            fairseq.models.transformer_align fairseq.models.transformer_from_pretrained_xlm fairseq.models.bart
            fairseq.models.fconv fairseq.models.lightconv fairseq.models.lstm fairseq.models.nat
            fairseq.models.multilingual_transformer fairseq.models.roberta.enc_dec fairseq.models.fairseq_decoder
            fairseq.models.fairseq_incremental_decoder fairseq.models.composite_encoder
            fairseq.models.distributed_fairseq_model fairseq.criterions.label_smoothed_cross_entropy
            fairseq.criterions.nat_loss fairseq.tasks.translation fairseq.tasks.multilingual_translation
            fairseq.tasks.denoising fairseq.tasks.semisupervised_translation fairseq.tasks.online_backtranslation
            fairseq.scoring.bleu fairseq.scoring.tokenizer fairseq_cli.score
        """,
        CAUSAL: """
            fairseq.models.transformer_lm fairseq.models.fconv_lm fairseq.models.lstm_lm fairseq.models.lightconv_lm
            fairseq.data.monolingual_dataset fairseq.data.lm_context_window_dataset fairseq.tasks.language_modeling
            fairseq.criterions.adaptive_loss fairseq.modules.adaptive_softmax fairseq.modules.adaptive_input
        """,
        SPEECH: """
            fairseq.data.audio fairseq.models.wav2vec fairseq.models.hubert fairseq.models.speech_to_text
            fairseq.models.speech_to_speech fairseq.models.text_to_speech fairseq.tasks.audio_pretraining
            fairseq.tasks.speech_to_text fairseq.criterions.ctc fairseq.criterions.wav2vec_criterion
            fairseq.speech_generator
        """,
        "model-parallel and wrapped models": "fairseq.models.huggingface fairseq.model_parallel",
        "product quantization": "fairseq.modules.quantization",
        "the legacy XLM/BERT model (use roberta)": "fairseq.models.masked_lm fairseq.data.legacy",
        "block-momentum training (BMUF)": "fairseq.optim.bmuf",
        "the old dummy tasks (see benchmarks/)": "fairseq.benchmark",
    }
)
# Names that packages of the original exported.
NAMES = by_name(
    {
        SEQ2SEQ: """
            fairseq.data.BacktranslationDataset fairseq.data.DenoisingDataset fairseq.data.LanguagePairDataset
            fairseq.data.NoisingDataset fairseq.data.RoundRobinZipDatasets fairseq.data.TransformEosDataset
            fairseq.data.TransformEosLangPairDataset fairseq.models.CompositeEncoder fairseq.modules.AdaptiveSoftmax
            fairseq.modules.BeamableMM fairseq.modules.TransformerDecoderLayer fairseq.dataclass.configs.GenerationConfig
            fairseq.dataclass.configs.InteractiveConfig
        """,
        CAUSAL: """
            fairseq.data.MonolingualDataset fairseq.data.LMContextWindowDataset fairseq.dataclass.configs.EvalLMConfig
        """,
        "block-momentum training (BMUF)": "fairseq.dataclass.configs.FairseqBMUFConfig",
        SPEECH: "fairseq.data.FileAudioDataset fairseq.data.AddTargetDataset fairseq.data.HubertDataset",
    }
)
# What the original's tests/utils.py imports beside the masked-LM parts.
STUBS = {
    "fairseq.data.language_pair_dataset": ("collate", "LanguagePairDataset"),
    "fairseq_cli.eval_lm": ("main", "cli_main"),
    "fairseq_cli.generate": ("main", "cli_main"),
    "fairseq_cli.interactive": ("main", "cli_main"),
}


def refuse(kind: str, name: str, field: str, known: list[str]) -> OutOfScopeError:
    """The error for a known but unsupported ``kind`` (task, architecture, ...) called ``name`` from ``field``."""
    return OutOfScopeError(
        f"{kind} {name!r} belongs to {field}, which is out of scope: {HERE}; available: {', '.join(known)}"
    )


def name_of_package(package: str, name: str) -> Any:
    """What ``package.name`` gives when it is not there: a stub, an OutOfScopeError, or an AttributeError."""
    full = f"{package}.{name}"
    if full in NAMES:
        raise _error(full, NAMES[full])
    if name in STUBS.get(package, ()):
        return _stub(package, name)
    raise AttributeError(f"module {package!r} has no attribute {name!r}")


def check_module(name: str) -> None:
    """Raise OutOfScopeError for an import path of the original that is not here."""
    if name in MODULES:
        raise _error(name, MODULES[name])


def fill_stub(module: ModuleType) -> None:
    """Give the empty ``module``, one of `STUBS`, its names."""
    for name in STUBS[module.__name__]:
        setattr(module, name, _stub(module.__name__, name))


def _stub(module: str, name: str) -> type:
    def refuse(self: object, *args: object, **kwargs: object) -> NoReturn:
        raise _error(f"{module}.{name}", SEQ2SEQ)

    return type(name, (), {"__init__": refuse, "__module__": module, "__doc__": f"Stands in for {name}; unusable."})


def _error(name: str, field: str) -> OutOfScopeError:
    return OutOfScopeError(f"{name} belongs to {field}, which is out of scope: {HERE}")
