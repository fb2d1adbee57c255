"""What this project deliberately does not do, and the sentences that say so.

Known names of tasks, models and criterions of the original that are not here: asking for one raises OutOfScopeError, so
that an old plugin hears at once what it cannot have. Import paths are answered by `fairseq.compat.absent`.
"""

from __future__ import annotations

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


def refuse(kind: str, name: str, field: str, known: list[str]) -> OutOfScopeError:
    """The error for a known but unsupported ``kind`` (task, architecture, ...) called ``name`` from ``field``."""
    return OutOfScopeError(
        f"{kind} {name!r} belongs to {field}, which is out of scope: {HERE}; available: {', '.join(known)}"
    )
