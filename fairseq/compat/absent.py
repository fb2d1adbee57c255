"""What the original had and this project has not: its modules and names by field, and what asking for one gives.

A *module* of another field cannot be imported: the error says which field, and what to use instead where there is
something. A *name* of a field of text (`STAND_INS`) can be imported, because files beside the masked-LM code do so, and
derived from; it refuses when it is called or made. Any other name refuses at once.
"""

from __future__ import annotations

import functools
from abc import ABCMeta
from typing import Any, NoReturn

from fairseq.compat.aliases import fetch
from fairseq.errors import OutOfScopeError
from fairseq.refusals import CAUSAL, HERE, SEQ2SEQ, SPEECH, by_name

LEGACY = "the legacy XLM/BERT code (use masked_lm and roberta)"
SCORES = "the evaluation of generated text"
PARALLEL = "model-parallel and wrapped models"
WRAPPERS = "the original's own wrappers for distributed training (use fairseq.distributed)"
TPU = "training on TPUs"
ADAPTERS = "adapters, as in X-MOD"
MIXERS = "layers of other models (a token mixer of one's own is a plugin: docs/adding_a_variant.md)"
QUANTIZED = "the quantization of models"
BMUF = "block-momentum training, BMUF"
OPTIMIZERS = "optimizers that are not built in (use adam, whose updates are fused where that is compiled)"
ENCODERS = "text encoders that are not built in (encode the text beforehand, or use hf_tokenizer or sentencepiece)"
STORAGE = "storage that is not built in (use --dataset-impl mmap)"
REMOTE = "remote storage (mount it, or download the files)"
BARS = "the original's wrappers of progress bars (use progress_bar with tensorboard_logdir or wandb_project)"
HYDRA = "the original's own way into hydra (use fairseq.cli.hydra_train)"
LOOP = "the original's own training loop (use fairseq.training)"
MIXES = "a mix of several languages or corpora by batch (use one corpus of all, or MultiCorpusDataset)"
DUMMIES = "the old dummy tasks (see benchmarks/)"

# Modules that cannot be imported; what lies below one of them cannot either.
MODULES = by_name(
    {
        SEQ2SEQ: """
            fairseq.sequence_generator fairseq.sequence_scorer fairseq.search fairseq.iterative_refinement_generator
            fairseq.token_generation_constraints fairseq.ngram_repeat_block
            fairseq.data.noising fairseq.data.backtranslation_dataset fairseq.data.multilingual
            fairseq.data.span_mask_tokens_dataset fairseq.data.transform_eos_dataset
            fairseq.data.transform_eos_lang_pair_dataset fairseq.data.transform_eos_concat_langpair_dataset
            fairseq.models.transformer_align fairseq.models.transformer_from_pretrained_xlm fairseq.models.fconv
            fairseq.models.fconv_self_att fairseq.models.lightconv fairseq.models.lstm fairseq.models.nat
            fairseq.models.multilingual_transformer fairseq.models.roberta.enc_dec fairseq.models.model_utils
            fairseq.models.transformer.transformer_decoder_aug fairseq.modules.transformer_layer_aug
            fairseq.modules.beamable_mm fairseq.modules.dynamic_crf_layer
            fairseq.criterions.label_smoothed_cross_entropy_latency_augmented
            fairseq.criterions.label_smoothed_cross_entropy_with_alignment
            fairseq.criterions.label_smoothed_cross_entropy_with_ctc
            fairseq.criterions.label_smoothed_cross_entropy_with_rdrop fairseq.criterions.nat_loss
            fairseq.tasks.multilingual_translation fairseq.tasks.multilingual_denoising fairseq.tasks.span_masked_lm
            fairseq.tasks.semisupervised_translation fairseq.tasks.online_backtranslation
            fairseq.tasks.simultaneous_translation fairseq.tasks.translation_from_pretrained_bart
            fairseq.tasks.translation_from_pretrained_xlm fairseq.tasks.translation_lev
            fairseq.tasks.translation_multi_simple_epoch
        """,
        CAUSAL: """
            fairseq.models.fconv_lm fairseq.models.lstm_lm fairseq.models.lightconv_lm fairseq.models.transformer_ulm
            fairseq.data.lm_context_window_dataset fairseq.tasks.multilingual_language_modeling
            fairseq.criterions.adaptive_loss fairseq.modules.adaptive_softmax fairseq.modules.adaptive_input
        """,
        SPEECH: """
            fairseq.data.audio fairseq.data.add_target_dataset fairseq.data.add_class_target_dataset
            fairseq.data.codedataset fairseq.data.speech_dlm_dataset fairseq.data.text_compressor
            fairseq.models.wav2vec fairseq.models.hubert fairseq.models.multires_hubert fairseq.models.speech_dlm
            fairseq.models.speech_to_text fairseq.models.speech_to_speech fairseq.models.text_to_speech
            fairseq.modules.conformer_layer fairseq.modules.espnet_multihead_attention
            fairseq.modules.gumbel_vector_quantizer fairseq.modules.kmeans_vector_quantizer
            fairseq.modules.positional_encoding fairseq.modules.rotary_positional_embedding fairseq.modules.vggblock
            fairseq.modules.lstm_cell_with_zoneout fairseq.modules.location_attention
            fairseq.tasks.audio_classification fairseq.tasks.audio_finetuning fairseq.tasks.audio_pretraining
            fairseq.tasks.frm_text_to_speech fairseq.tasks.hubert_pretraining
            fairseq.tasks.multires_hubert_pretraining fairseq.tasks.nlu_finetuning fairseq.tasks.speech_dlm_task
            fairseq.tasks.speech_to_speech fairseq.tasks.speech_to_text fairseq.tasks.speech_ulm_task
            fairseq.tasks.text_to_speech fairseq.criterions.ctc fairseq.criterions.fastspeech2_loss
            fairseq.criterions.hubert_criterion fairseq.criterions.model_criterion
            fairseq.criterions.speech_dlm_criterion fairseq.criterions.speech_to_speech_criterion
            fairseq.criterions.speech_ulm_criterion fairseq.criterions.tacotron2_loss
            fairseq.criterions.wav2vec_criterion fairseq.speech_generator
        """,
        LEGACY: """
            fairseq.models.masked_lm fairseq.data.legacy fairseq.tasks.legacy_masked_lm fairseq.tasks.cross_lingual_lm
            fairseq.criterions.legacy_masked_lm
        """,
        SCORES: """
            fairseq.scoring.bertscore fairseq.scoring.bleu fairseq.scoring.chrf fairseq.scoring.meteor
            fairseq.scoring.tokenizer fairseq.scoring.wer fairseq_cli.score
        """,
        PARALLEL: "fairseq.models.huggingface fairseq.model_parallel fairseq.modules.base_layer",
        WRAPPERS: """
            fairseq.distributed.distributed_timeout_wrapper fairseq.distributed.fully_sharded_data_parallel
            fairseq.distributed.legacy_distributed_data_parallel fairseq.distributed.module_proxy_wrapper
            fairseq.models.distributed_fairseq_model fairseq.optim.shard
        """,
        TPU: "fairseq.distributed.tpu_distributed_data_parallel",
        ADAPTERS: """
            fairseq.models.xmod fairseq.tasks.sentence_prediction_adapters
            fairseq.criterions.sentence_prediction_adapters
        """,
        MIXERS: """
            fairseq.modules.character_token_embedder fairseq.modules.conv_tbc
            fairseq.modules.downsampled_multihead_attention fairseq.modules.dynamic_convolution
            fairseq.modules.dynamicconv_layer fairseq.modules.kmeans_attention fairseq.modules.lightconv_layer
            fairseq.modules.lightweight_convolution fairseq.modules.linearized_convolution fairseq.modules.scalar_bias
            fairseq.modules.sparse_multihead_attention fairseq.modules.sparse_transformer_sentence_encoder
            fairseq.modules.sparse_transformer_sentence_encoder_layer fairseq.modules.unfold
            fairseq.criterions.composite_loss
        """,
        QUANTIZED: "fairseq.modules.quantization fairseq.quantization_utils",
        BMUF: "fairseq.optim.bmuf",
        OPTIMIZERS: "fairseq.optim.composite fairseq.optim.cpu_adam fairseq.optim.fused_adam",
        ENCODERS: """
            fairseq.data.encoders.byte_bpe fairseq.data.encoders.byte_utils fairseq.data.encoders.bytes
            fairseq.data.encoders.characters fairseq.data.encoders.fastbpe fairseq.data.encoders.moses_tokenizer
            fairseq.data.encoders.nltk_tokenizer fairseq.data.encoders.subword_nmt_bpe
        """,
        STORAGE: "fairseq.data.fasta_dataset fairseq.data.huffman fairseq.data.plasma_utils",
        HYDRA: "fairseq.dataclass.initialize fairseq_cli.hydra_validate",
        DUMMIES: "fairseq.benchmark",
    }
)

# Names that can be imported from any module here, and refuse when they are used.
STAND_INS = by_name(
    {
        SEQ2SEQ: """
            BARTClassificationHead BARTHubInterface BARTModel BacktranslationDataset CompositeEncoder
            DenoisingConfig DenoisingDataset DenoisingTask FairseqDecoder FairseqEncoderDecoderModel
            FairseqIncrementalDecoder FairseqLanguageModel FairseqMultiModel
            FairseqNATDecoder FairseqNATEncoder FairseqNATModel GenerationConfig GeneratorHubInterface
            InteractiveConfig LabelSmoothedCrossEntropyCriterion LabelSmoothedCrossEntropyCriterionConfig
            LanguagePairDataset MultilingualDatasetManager NoisingDataset SampledMultiDataset
            SampledMultiEpochDataset SequenceGenerator SequenceScorer SpanMaskedTokensDataset
            TransformEosConcatLangPairDataset TransformEosDataset TransformEosLangPairDataset TransformerConfig
            TransformerDecoder TransformerDecoderBase TransformerDecoderLayer TransformerDecoderLayerBase
            TransformerEncoder TransformerEncoderBase TransformerEncoderLayer TransformerEncoderLayerBase
            TransformerModel TransformerModelBase TranslationConfig TranslationTask UnsupervisedMTNoising
            WordDropout WordNoising WordShuffle AdaptiveSoftmax BeamableMM DynamicCRF
            EncDecBaseConfig DecoderConfig QuantNoiseConfig TransformerDecoderConfig
            add_common_eval_args add_generation_args add_interactive_args add_speech_generation_args extract_hard_alignment
            extract_soft_alignment get_incremental_state get_token_to_word_mapping load_align_dict
            load_ensemble_for_inference load_langpair_dataset parse_alignment post_process_prediction replace_unk
            set_incremental_state bart_large_architecture mbart_large_architecture bart_base_architecture
            mbart_base_architecture tiny_architecture transformer_iwslt_de_en transformer_wmt_en_de
            transformer_vaswani_wmt_en_de_big transformer_wmt_en_de_big
            fairseq.models.bart.model.base_architecture fairseq.models.transformer.base_architecture
            fairseq.models.transformer.transformer_legacy.base_architecture
            fairseq.data.language_pair_dataset.collate fairseq.data.monolingual_dataset.collate fairseq_cli.generate.main fairseq_cli.generate.cli_main
            fairseq_cli.interactive.main fairseq_cli.interactive.cli_main
        """,
        CAUSAL: """
            AdaptiveInput AdaptiveLoss CrossEntropyCriterion CrossEntropyCriterionConfig EvalLMConfig
            LMContextWindowDataset LanguageModelingConfig LanguageModelingTask MonolingualDataset
            TransformerLanguageModel TransformerLanguageModelConfig add_eval_lm_args transformer_lm_big
            base_lm_architecture transformer_lm_gpt transformer_lm_gpt2_big transformer_lm_gpt2_medium
            transformer_lm_gpt2_small transformer_lm_gpt3_small
            fairseq_cli.eval_lm.main fairseq_cli.eval_lm.cli_main
        """,
        SCORES: "BaseScorer build_scorer",
        LEGACY: "BertDictionary BlockPairDataset MaskedLMDataset MaskedLMDictionary MaskedLMEncoder MaskedLMModel",
    }
)

# Names that refuse at once, wherever they are asked for.
NAMES = by_name(
    {
        SPEECH: """
            AddTargetDataset AsrDataset BinarizedAudioDataset CodeDataset ESPNETMultiHeadedAttention FileAudioDataset
            GumbelVectorQuantizer HubertDataset KmeansVectorQuantizer LocationAttention LSTMCellWithZoneOut
            PositionalEncoding RelPositionMultiHeadedAttention RelPositionalEncoding RotaryPositionMultiHeadedAttention
            RotaryPositionalEmbedding SpeechDLMDataset VGGBlock compute_block_mask_1d compute_block_mask_2d
            compute_mask_indices data2vec_audio_classification
        """,
        MIXERS: """
            CharacterTokenEmbedder ConvTBC DownsampledMultiHeadAttention DynamicConvolution DynamicconvLayer
            LightConv LightconvLayer LightweightConvolution LinearizedConvolution ScalarBias SparseMultiheadAttention
            SparseTransformerSentenceEncoder SparseTransformerSentenceEncoderLayer unfold1d
        """,
        PARALLEL: "BaseLayer ModelParallelMultiheadAttention get_maybe_sharded_checkpoint_filename",
        WRAPPERS: """
            DistributedFairseqModel DistributedTimeoutWrapper FullyShardedDataParallel LegacyDistributedDataParallel
            ModuleProxyWrapper fsdp_enable_wrap fsdp_wrap shard_
        """,
        TPU: "TPUDistributedDataParallel get_tpu_device move_to_tpu batch_fixed_shapes_fast tpu_data_loader xla_device_to_cpu",
        BMUF: "FairseqBMUF FairseqBMUFConfig",
        STORAGE: """
            EncodedFastaDataset FastaDataset HuffmanMMapIndex HuffmanMMapIndexedDataset
            HuffmanMMapIndexedDatasetBuilder PlasmaArray PlasmaStore PlasmaView
        """,
        REMOTE: """
            cached_path_from_pm filename_to_url http_get load_model_ensemble_and_task_from_hf_hub s3_etag s3_get
            s3_request split_s3_path
        """,
        BARS: """
            AimProgressBarWrapper AzureMLProgressBarWrapper TensorboardProgressBarWrapper WandBProgressBarWrapper
        """,
        HYDRA: "add_defaults hydra_init interpret_dc_type merge_with_parent override_module_args overwrite_args_by_name",
        LOOP: """
            fairseq_cli.hydra_train.hydra_main fairseq_cli.train.get_training_stats
            fairseq_cli.train.should_stop_early fairseq_cli.train.train fairseq_cli.train.validate
            fairseq_cli.train.validate_and_save
        """,
        MIXES: "GroupedEpochBatchIterator",
        ADAPTERS: "XMODModel XMODHubInterface",
    }
)


# What does the same for masked language models.
INSTEAD = by_name(
    {
        "FairseqEncoderModel": "FairseqEncoderDecoderModel FairseqLanguageModel FairseqMultiModel",
        "MaskTokensDataset": "DenoisingDataset NoisingDataset SpanMaskedTokensDataset compute_mask_indices",
        "MaskedLMTask": "DenoisingTask LanguageModelingTask",
        "MaskedLmLoss": "CrossEntropyCriterion",
        "NestedDictionaryDataset": "LanguagePairDataset collate",
        "RobertaHubInterface": "BARTHubInterface GeneratorHubInterface",
        "RobertaModel": "BARTModel TransformerLanguageModel TransformerModel TransformerModelBase",
        "TokenBlockDataset": "LMContextWindowDataset MonolingualDataset",
        "fairseq.modules.TransformerSentenceEncoder": "TransformerEncoder TransformerEncoderBase",
        "fairseq.modules.TransformerSentenceEncoderLayer": "TransformerEncoderLayer TransformerEncoderLayerBase",
    }
)


class AbsentModuleError(OutOfScopeError, ImportError):
    """A module or name of the original that is not here; ``name``: the module that was asked."""

    def __init__(self, sentence: str, name: str) -> None:
        super().__init__(sentence)
        self.name = name


def check_module(name: str) -> None:
    """Raise AbsentModuleError for an import path of the original that is not here."""
    package, _, last = name.rpartition(".")
    parts = name.split(".")
    for length in range(2, len(parts) + 1):
        field = MODULES.get(".".join(parts[:length]))
        if field is not None:
            raise AbsentModuleError(_sentence(name, field), name)
    if last in NAMES:  # after ``from package import name``
        raise AbsentModuleError(_sentence(name, NAMES[last]), package)


def find(module: str, name: str) -> Any:
    """What stands in for ``module.name``, or None where the original never had it. Raises AbsentModuleError."""
    full = f"{module}.{name}"
    for spelling in (full, name):
        if spelling in STAND_INS:
            return _stand_in(module, name, STAND_INS[spelling])
        if spelling in NAMES:
            raise AbsentModuleError(_sentence(full, NAMES[spelling]), module)
    return None


def _sentence(name: str, field: str) -> str:
    sentence = f"{name} belongs to {field}, which is out of scope: {HERE}"
    instead = INSTEAD.get(name.rpartition(".")[2])
    if instead is not None:
        return f"{sentence}; use {instead}"
    return sentence if "(" in field else f"{sentence}; for it use the original, fairseq 0.12"


class _Refusing(ABCMeta):
    """A class that has nothing: whatever is asked of it that its base class does not know is refused."""

    refuses = True

    def __getattr__(cls, name: str) -> NoReturn:
        if name.startswith("_"):
            raise AttributeError(name)
        raise AbsentAttributeError(cls._sentence)  # type: ignore[attr-defined]


class AbsentAttributeError(OutOfScopeError, AttributeError):
    """The same where ``hasattr`` is to be False."""


# Decorators such as register_model look at the base class, so a stand-in has the one that its name promises.
_BASES = {
    "Model": "fairseq.models.fairseq_model:BaseFairseqModel",
    "Encoder": "fairseq.models.fairseq_model:FairseqEncoder",
    "EncoderBase": "fairseq.models.fairseq_model:FairseqEncoder",
    "Decoder": "torch.nn:Module",
    "Layer": "torch.nn:Module",
    "LayerBase": "torch.nn:Module",
    "Interface": "torch.nn:Module",
    "Task": "fairseq.tasks.fairseq_task:FairseqTask",
    "Criterion": "fairseq.criterions.fairseq_criterion:FairseqCriterion",
    "Loss": "fairseq.criterions.fairseq_criterion:FairseqCriterion",
    "Dataset": "fairseq.data.datasets:FairseqDataset",
    "Dictionary": "fairseq.data.dictionary:Dictionary",
    "Config": "fairseq.dataclass.base:FairseqDataclass",
}


@functools.cache
def _stand_in(module: str, name: str, field: str) -> type:
    sentence = _sentence(f"{module}.{name}", field)

    def refuse(*args: object, **kwargs: object) -> NoReturn:
        raise OutOfScopeError(sentence)

    place = next((place for suffix, place in _BASES.items() if name.endswith(suffix)), "builtins:object")
    base = fetch(place)
    body: dict[str, Any] = {
        "__new__": refuse,
        "__module__": module,
        "__doc__": f"Stands in for {name}: {sentence}.",
        "_sentence": sentence,
    }
    inherited = ("from_pretrained", "build_model", "setup_task", "load")
    body |= {method: staticmethod(refuse) for method in inherited if hasattr(base, method)}
    return _Refusing(name, (base,), body)
