"""Names that a module of the original had and whose home is another one here: module -> name -> ``"module:name"``.

For whole modules see `fairseq.compat.aliases`. A module is called by its name of today.
"""

from __future__ import annotations

_DATASETS = "fairseq.compat.datasets"
_DISTRIBUTED = "fairseq.compat.distributed"
_MODELS = "fairseq.compat.models"
_MODULES = "fairseq.compat.modules"
_PLUGINS = "fairseq.compat.plugins"
_READER = "fairseq.checkpoint.reader"
_TENSORS = "fairseq.compat.tensors"
_TEXTS = "fairseq.compat.texts"
_TRANSFORMER = "fairseq.compat.transformer"


def _at(module: str, names: str) -> dict[str, str]:
    return {name: f"{module}:{name}" for name in names.split()}


_OLD_DATASETS = """
    BucketPadLengthDataset ColorizeDataset FairseqIterableDataset MultiCorpusDataset MultiCorpusSampledDataset
    PrependDataset ReplaceDataset RoundRobinZipDatasets TruncatedDictionary
"""
_OLD_COLLECTIVES = """
    all_gather all_reduce all_to_all broadcast broadcast_tensors distributed_main get_group get_model_parallel_group
    get_model_parallel_rank get_model_parallel_src_rank get_model_parallel_world_size get_rank get_world_size
    infer_init_method new_groups use_xla
"""

_CONFIGS = "fairseq.dataclass.configs"
_FILES = "fairseq.compat.files"
_LOGS = "fairseq.compat.logs"
_UTILS = "fairseq.compat.utils"
_FEED_FORWARD = "fairseq.modules.feed_forward"

NAMES: dict[str, dict[str, str]] = {
    "fairseq.compat.data": _at(_FILES, "safe_readline"),
    _MODELS: _at(_MODULES, "Fp32LayerNorm"),
    _UTILS: {
        "_upgrade_state_dict": f"{_READER}:upgrade_state",
        "metrics": "fairseq.logging.metrics",
        **_at(_FEED_FORWARD, "gelu gelu_accurate relu_squared"),
        **_at(_LOGS, "reset_logging"),
        **_at(
            _TENSORS,
            """
            MANIFOLD_PATH_SEP CudaEnvironment FileContentsAction buffered_arange index_put is_xla_tensor
            multi_tensor_l2norm_available new_arange
            """,
        ),
        **_at(_TEXTS, "load_embedding parse_embedding print_embed_overlap"),
    },
    "fairseq.criterions": _at(_PLUGINS, "CRITERION_DATACLASS_REGISTRY"),
    "fairseq.criterions.masked_lm": _at("fairseq.criterions.configs", "MaskedLmConfig"),
    "fairseq.criterions.sentences": _at(_TEXTS, "acc_and_f1 pearson_and_spearman simple_accuracy"),
    "fairseq.data": _at(_DATASETS, _OLD_DATASETS),
    "fairseq.data.data_utils": {
        "_filter_by_size_dynamic": "fairseq.data.batching:filter_by_size_dynamic",
        **_at(
            _TENSORS,
            "collect_filtered filter_paired_dataset_indices_by_size get_bucketed_sizes get_buckets get_mem_usage",
        ),
    },
    "fairseq.data.datasets": {
        **_at(_DATASETS, "EpochListening FairseqIterableDataset"),
        "_flatten": "fairseq.data.datasets:flatten",
        "_unflatten": "fairseq.data.datasets:unflatten",
    },
    "fairseq.data.dictionary": _at(_DATASETS, "TruncatedDictionary"),
    "fairseq.data.encoders": _at(_PLUGINS, "BPE_REGISTRY TOKENIZER_REGISTRY"),
    "fairseq.data.encoders.gpt2_bpe": {
        "DEFAULT_ENCODER_JSON": "fairseq.data.encoders.configs:GPT2_ENCODER_JSON",
        "DEFAULT_VOCAB_BPE": "fairseq.data.encoders.configs:GPT2_VOCAB_BPE",
        **_at(_TEXTS, "get_pairs"),
    },
    "fairseq.data.indexed_dataset": {
        "_code_to_dtype": "fairseq.data.index_formats:DTYPES",
        "code": "fairseq.data.index_formats:dtype_code",
        **_at(_FILES, "dataset_exists get_available_dataset_impl get_indexed_dataset_to_local read_longs write_longs"),
    },
    "fairseq.data.iterators": _at(_DATASETS, "StreamingEpochBatchIterator"),
    "fairseq.data.masking": _at("fairseq.compat.data", "LRUCacheDataset"),
    "fairseq.data.text": _at(_FILES, "safe_readline"),
    "fairseq.data.wrappers": _at(_DATASETS, "LeftPaddingMaskDataset PaddingMaskDataset"),
    "fairseq.distributed": _at(_DISTRIBUTED, _OLD_COLLECTIVES),
    "fairseq.distributed.utils": _at(_DISTRIBUTED, _OLD_COLLECTIVES),
    "fairseq.file_io": _at(_FILES, "IOPathManager"),
    "fairseq.logging.meters": _at(_TENSORS, "type_as"),
    "fairseq.logging.progress": _at(_LOGS, "build_progress_bar rename_logger"),
    "fairseq.models": {**_at(_MODELS, "FairseqModel"), "import_models": f"{_FILES}:import_all"},
    "fairseq.models.ema": {**_at(_CONFIGS, "EMAConfig"), **_at(_MODELS, "build_ema")},
    "fairseq.models.fairseq_model": _at(_MODELS, "FairseqModel check_type"),
    "fairseq.models.roberta": _at(_TRANSFORMER, "TransformerSentenceEncoder"),
    "fairseq.models.roberta.model": {
        **_at(
            "fairseq.models.roberta.presets",
            "roberta_base_architecture roberta_large_architecture roberta_prenorm_architecture xlm_architecture",
        ),
        **_at(_TRANSFORMER, "TransformerSentenceEncoder"),
        **_at(_MODULES, "DEFAULT_MIN_PARAMS_TO_WRAP"),
        **_at(_UTILS, "safe_getattr safe_hasattr"),
    },
    "fairseq.modules": {
        **_at(
            _MODULES,
            """
            FairseqDropout Fp32BatchNorm Fp32GroupNorm Fp32InstanceNorm Fp32LayerNorm GradMultiply LayerDropModuleList
            SamePad SamePad2d TransposeLast checkpoint_wrapper cross_entropy
            """,
        ),
        **_at(_TRANSFORMER, "MultiheadAttention TransformerSentenceEncoder TransformerSentenceEncoderLayer"),
        **_at("fairseq.compat.ema_module", "EMAModule EMAModuleConfig"),
        **_at(_FEED_FORWARD, "gelu gelu_accurate"),
    },
    "fairseq.optim": _at(_PLUGINS, "OPTIMIZER_DATACLASS_REGISTRY"),
    "fairseq.optim.ema": _at(_CONFIGS, "EMAConfig"),
    "fairseq.optim.lr_scheduler": _at(_PLUGINS, "LR_SCHEDULER_DATACLASS_REGISTRY"),
    "fairseq.registry": _at(_PLUGINS, "REGISTRIES set_defaults setup_registry"),
    "fairseq.tasks": {
        **_at("fairseq.dataclass.base", "FairseqDataclass"),
        **_at(_PLUGINS, "TASK_CLASS_NAMES"),
        "import_tasks": f"{_FILES}:import_all",
    },
    "fairseq.tasks.masked_lm": {
        **_at("fairseq.tasks.fairseq_task", "LegacyFairseqTask"),
        **_at(_PLUGINS, "MASK_LENGTH_CHOICES SAMPLE_BREAK_MODE_CHOICES SHORTEN_METHOD_CHOICES"),
        "data_utils": "fairseq.data.data_utils",
    },
    "fairseq.tasks.sentence_task": {
        **_at("fairseq.data.wrappers", "OffsetTokensDataset RawLabelDataset StripTokenDataset"),
        **_at(_PLUGINS, "SHORTEN_METHOD_CHOICES"),
        "data_utils": "fairseq.data.data_utils",
    },
}
