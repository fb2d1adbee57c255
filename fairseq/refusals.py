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
        "optimizers of other packages (use adam; cpu_offload keeps its state on the CPU)": "cpu_adam",
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


def refuse(kind: str, name: str, field: str, known: list[str]) -> OutOfScopeError:
    """The error for a known but unsupported ``kind`` (task, architecture, ...) called ``name`` from ``field``."""
    return OutOfScopeError(
        f"{kind} {name!r} belongs to {field}, which is out of scope: {HERE}; available: {', '.join(known)}"
    )
