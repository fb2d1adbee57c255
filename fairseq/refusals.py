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
            translation translation_lev translation_multi_simple_epoch translation_from_pretrained_bart
            translation_from_pretrained_xlm translation_moe multilingual_translation latent_multilingual_translation
            multilingual_translation_latent_depth semisupervised_translation online_backtranslation denoising
            multilingual_denoising span_masked_lm simul_speech_to_text simul_text_to_text simultaneous_speech_to_text
            simultaneous_text_to_text discriminative_reranking_nmt noisy_channel_translation dot pointer_generator
            laser dummy_mt
        """,
        SPEECH: """
            audio_pretraining audio_finetuning audio_classification hubert_pretraining speech_pretraining
            speech_recognition speech_to_text speech_to_speech speech_to_speech_fasttranslate speech_text_joint_to_text
            speech_unit_modeling speech_dlm_task text_to_speech frm_text_to_speech unpaired_audio_text unit_lm
        """,
        PRONOUNS: "wsc winogrande",
        VISION: "image_pretraining image_classification mae_image_pretraining mae_image_classification multimodal",
        CAUSAL: "language_modeling multilingual_language_modeling truncated_bptt_lm dummy_lm lm_adaptive",
        "adapters of multilingual models": "sentence_prediction_adapters nlu_finetuning",
        "the legacy XLM/BERT task (use masked_lm)": "legacy_masked_lm cross_lingual_lm",
        "the old dummy tasks (see benchmarks/)": "dummy_masked_lm",
    }
)
MODELS = by_name(
    {
        SEQ2SEQ: """
            transformer transformer_tiny transformer_align transformer_from_pretrained_xlm transformer_iwslt_de_en
            transformer_wmt_en_de transformer_wmt_en_de_big transformer_wmt_en_de_big_align
            transformer_wmt_en_de_big_t2t transformer_wmt_en_fr_big transformer_vaswani_wmt_en_de_big
            transformer_vaswani_wmt_en_fr_big transformer_ulm transformer_pointer_generator fconv fconv_iwslt_de_en
            fconv_wmt_en_ro fconv_wmt_en_de fconv_wmt_en_fr fconv_self_att fconv_self_att_wp lstm lstm_wiseman_iwslt_de_en
            lstm_luong_wmt_en_de lightconv lightconv_iwslt_de_en lightconv_wmt_en_de lightconv_wmt_en_de_big
            lightconv_wmt_en_fr_big lightconv_wmt_zh_en_big bart bart_base bart_large mbart_base mbart_large
            mbart_base_wmt20 roberta_enc_dec nonautoregressive_transformer nonautoregressive_transformer_wmt_en_de
            nacrf_transformer iterative_nonautoregressive_transformer cmlm_transformer cmlm_transformer_wmt_en_de
            insertion_transformer levenshtein_transformer levenshtein_transformer_wmt_en_de
            levenshtein_transformer_vaswani_wmt_en_de_big multilingual_transformer multilingual_transformer_iwslt_de_en
            latent_multilingual_transformer laser_lstm laser_transformer gru_transformer
        """,
        SPEECH: """
            wav2vec wav2vec2 wav2vec_ctc wav2vec_seq2seq hubert hubert_ctc hubert_seq2seq s2t_berard s2t_transformer
            s2t_transformer_s s2t_transformer_m s2t_transformer_l s2t_conformer convtransformer convtransformer_espnet
            xm_transformer s2ut_transformer s2spect_transformer tacotron_2 tts_transformer fastspeech2 speech_dlm
            vggtransformer_1 vggtransformer_2 multires_hubert
        """,
        VISION: "data2vec_audio data2vec_multi data2vec_image_pretrain data2vec_image_classification d2v2_multi",
        CAUSAL: """
            transformer_lm transformer_lm_big transformer_lm_baevski_wiki103 transformer_lm_baevski_gbw transformer_lm_wiki103
            transformer_lm_gbw transformer_lm_gpt transformer_lm_gpt2_tiny transformer_lm_gpt2_small
            transformer_lm_gpt2_medium transformer_lm_gpt2_big transformer_lm_gpt2_bigger transformer_lm_gpt3_small
            transformer_lm_gpt3_medium transformer_lm_gpt3_large transformer_lm_gpt3_xl transformer_lm_gpt3_2_7
            transformer_lm_gpt3_6_7 transformer_lm_gpt3_13 transformer_lm_gpt3_175 transformer_xl adaptive_span fconv_lm
            fconv_lm_dauphin_wikitext103 fconv_lm_dauphin_gbw lstm_lm lightconv_lm lightconv_lm_gbw hf_gpt2 hf_gpt2_medium
            hf_gpt2_large hf_gpt2_xl
        """,
        "data2vec (a teacher of features)": "data2vec_text data2vec2_text",
        "model parallelism": "model_parallel_roberta model_parallel_roberta_base model_parallel_roberta_large",
        "the legacy XLM/BERT model (use roberta)": "masked_lm bert_base bert_large xlm_base",
        "linformer (the original's examples)": "linformer_roberta linformer_roberta_base linformer_roberta_large",
    }
)
CRITERIONS = by_name(
    {
        SEQ2SEQ: """
            label_smoothed_cross_entropy label_smoothed_cross_entropy_with_alignment label_smoothed_cross_entropy_with_ctc
            label_smoothed_cross_entropy_with_rdrop label_smoothed_cross_entropy_r3f
            label_smoothed_cross_entropy_latency_augmented latency_augmented_label_smoothed_cross_entropy nat_loss
            latency_augmented composite_loss
        """,
        SPEECH: """
            ctc wav2vec hubert model speech_to_unit speech_to_unit_2pass speech_to_spectrogram speech_to_spectrogram_2pass
            speech_text_pretrain_cross_entropy guided_label_smoothed_cross_entropy_with_accuracy tacotron2 fastspeech2
            speech_dlm_criterion speech_ulm_criterion cross_entropy_acc ASG_loss
        """,
        CAUSAL: "adaptive_loss cross_entropy vocab_parallel_cross_entropy",
        PRONOUNS: "wsc winogrande",
        "adapters of multilingual models": "sentence_prediction_adapters",
        "the legacy XLM/BERT loss (use masked_lm)": "legacy_masked_lm_loss",
    }
)
OPTIMIZERS = by_name(
    {
        "optimizers that divide the parameters among them (use freeze and lr_scales)": "composite",
        "keeping the state of the optimizer on the CPU": "cpu_adam",
        "block-momentum training (BMUF)": "bmuf",
    }
)
BPES = by_name(
    {
        "subwords of other programs (encode the text with them, then preprocess without --bpe)": "fastbpe subword_nmt",
        "models of characters and bytes": "byte_bpe bytes characters",
    }
)
TOKENIZERS = by_name({"tokenizers of other programs (apply them before preprocessing)": "moses nltk"})
SCORERS = by_name({SEQ2SEQ: "bleu sacrebleu chrf meteor wer bert_score"})
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
