"""The configuration tree: fixed sections (the original's fields, defaults and flags), one node per component.

Key order is the order in which checkpoints store them. "updates" are optimizer steps, "batches" micro-batches. The
node of a component is chosen by its ``_name``.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

from fairseq.dataclass.base import HIDDEN, II, MISSING, FairseqDataclass, carried, option

LOG_FORMATS = ("json", "none", "simple", "tqdm")
AMP_DTYPES = ("fp16", "bf16")
DATASET_IMPLS = ("raw", "lazy", "cached", "mmap", "fasta", "huffman")

# What settings that are only carried belong to.
BMUF = "block-wise model updates (BMUF)"
QUANTIZATION = "quantization noise"
PIPELINES = "pipeline parallelism"
SLOWMO = "slow momentum"


@dataclass(kw_only=True)
class CommonConfig(FairseqDataclass):
    """Logging, seed, device and precision."""

    no_progress_bar: bool = option(False, "print plain lines instead of a progress bar")
    log_interval: int = option(100, "log training statistics every this many updates", within="[1, inf)")
    log_format: str | None = option(
        None, "form of the statistics lines (default: tqdm on a terminal)", choices=LOG_FORMATS
    )
    log_file: str | None = option(None, "also write the log to this file")
    aim_repo: str | None = carried(None, "logging to Aim")
    aim_run_hash: str | None = carried(None, "logging to Aim")
    tensorboard_logdir: str | None = option(None, "write tensorboard event files into this directory")
    wandb_project: str | None = option(None, "log to this Weights & Biases project")
    azureml_logging: bool | None = carried(False, "logging to AzureML")
    seed: int = option(1, "seed of initialization, data order, masks and dropout")
    cpu: bool = option(False, "use the CPU even if a GPU is there")
    tpu: bool = carried(False, "TPU training")
    bf16: bool = option(False, "train in bfloat16 with a float32 master copy of the parameters")
    memory_efficient_bf16: bool = option(False, "bfloat16 with less memory; implies bf16")
    fp16: bool = option(False, "train in float16 with loss scaling (needs a GPU; without one float32 is used)")
    memory_efficient_fp16: bool = option(False, "float16 with less memory; implies fp16")
    fp16_no_flatten_grads: bool = option(False, "keep float16 gradients per tensor instead of one flat buffer")
    fp16_init_scale: int = option(2**7, "initial loss scale in float16", within="[1, inf)")
    fp16_scale_window: int | None = option(
        None, "updates without overflow before the loss scale doubles", within="[1, inf)"
    )
    fp16_scale_tolerance: float = option(
        0.0, "fraction of overflowing updates tolerated before the scale is lowered", within="[0, 1]"
    )
    on_cpu_convert_precision: bool = option(False, "accepted without effect: samples are converted on the device")
    min_loss_scale: float = option(1e-4, "stop when the loss scale falls to this value", within="[0, inf)")
    threshold_loss_scale: float | None = option(None, "never lower the loss scale below this value", within="[0, inf)")
    amp: bool = option(False, "automatic mixed precision (torch.autocast); excludes fp16")
    amp_dtype: str = option(
        "fp16",
        "what amp computes in on a GPU; bf16 needs no loss scale (on the CPU it is always bf16)",
        choices=AMP_DTYPES,
        new=True,
    )
    amp_batch_retries: int = option(2, "tries of one batch after an overflow under amp", within="[0, inf)")
    amp_init_scale: int = option(2**7, "initial loss scale under amp", within="[1, inf)")
    amp_scale_window: int | None = option(
        None, "updates without overflow before the amp loss scale doubles", within="[1, inf)"
    )
    user_dir: str | None = option(None, "directory of a Python module with own tasks, models, criterions, ...")
    empty_cache_freq: int = option(
        0, "empty the GPU memory cache every this many updates (0: never)", within="[0, inf)"
    )
    all_gather_list_size: int = option(16384, "accepted without effect", within="[0, inf)")
    model_parallel_size: int = carried(1, "model parallelism")
    quantization_config_path: str | None = carried(None, QUANTIZATION)
    profile: bool = option(
        False, "write a trace of a few early updates for TensorBoard or Perfetto; its place is logged"
    )
    tf32: bool = option(
        False, "float32 products on a GPU in TF32: several times quicker, inputs rounded to 10 bits", new=True
    )
    compile: bool = option(
        False,
        "compile the layers with torch.compile, once for all lengths: the first updates take minutes; losses differ by "
        "rounding",
        new=True,
    )
    reset_logging: bool = option(False, "replace the log handlers that hydra installed by fairseq's own")
    suppress_crashes: bool = option(False, "log exceptions of fairseq-hydra-train instead of raising them, for sweeps")
    use_plasma_view: bool = option(False, "accepted without effect: data are memory mapped")
    plasma_path: str | None = option("/tmp/plasma", "accepted without effect")


@dataclass(kw_only=True)
class CommonEvalConfig(FairseqDataclass):
    """Evaluation of a stored model."""

    path: str | None = option(None, "checkpoint to evaluate, or a directory with one")
    post_process: str | None = option(
        None, "accepted without effect: served generation", alias="--remove-bpe", const="subword_nmt"
    )
    quiet: bool = option(False, "accepted without effect")
    model_overrides: str = option("{}", "Python dictionary of settings that replace those stored in the checkpoint")
    results_path: str | None = option(None, "accepted without effect")


@dataclass(kw_only=True)
class DatasetConfig(FairseqDataclass):
    """Batches, subsets and the validation schedule."""

    num_workers: int = option(1, "worker processes that load data (0: in the main process)", within="[0, inf)")
    skip_invalid_size_inputs_valid_test: bool = option(False, "skip too long validation samples instead of stopping")
    max_tokens: int | None = option(None, "most tokens in a batch, padding included", within="[1, inf)")
    batch_size: int | None = option(None, "most sentences in a batch", within="[1, inf)", alias="--max-sentences")
    required_batch_size_multiple: int = option(8, "batch sizes are multiples of this where possible", within="[1, inf)")
    required_seq_len_multiple: int = option(
        1, "accepted without effect, as in the original: sequences are padded to the longest", within="[1, inf)"
    )
    dataset_impl: str | None = option(
        None, "accepted without effect: the storage format is read off the files", choices=DATASET_IMPLS
    )
    data_buffer_size: int | None = option(10, "batches that are preloaded", within="[0, inf)")
    train_subset: str = option("train", "name of the training split")
    valid_subset: str = option("valid", "comma-separated names of the validation splits")
    combine_valid_subsets: bool | None = option(
        None, "validate on valid, valid1, ... joined to one set", alias="--combine-val"
    )
    ignore_unused_valid_subsets: bool | None = option(False, "do not stop when unlisted valid subsets exist")
    validate_interval: int = option(1, "validate every this many epochs", within="[1, inf)")
    validate_interval_updates: int = option(0, "validate every this many updates (0: never)", within="[-1, inf)")
    validate_after_updates: int = option(0, "do not validate before this many updates", within="[0, inf)")
    fixed_validation_seed: int | None = option(None, "seed of validation masks, the same in every epoch")
    disable_validation: bool = option(False, "never validate")
    max_tokens_valid: int | None = option(
        II("dataset.max_tokens"), "most tokens in a validation batch", within="[1, inf)"
    )
    batch_size_valid: int | None = option(
        II("dataset.batch_size"),
        "most sentences in a validation batch",
        within="[1, inf)",
        alias="--max-sentences-valid",
    )
    max_valid_steps: int | None = option(
        None, "validate on at most this many batches", within="[0, inf)", alias="--nval"
    )
    exact_valid_steps: bool = option(
        False, "stop after max-valid-steps batches; the original evaluates one more", new=True
    )
    curriculum: int = option(0, "do not shuffle batches in the first this many epochs", within="[0, inf)")
    gen_subset: str = option("test", "accepted without effect: served generation")
    num_shards: int = option(1, "accepted without effect: served generation", within="[1, inf)")
    shard_id: int = option(0, "accepted without effect: served generation", within="[0, inf)")
    grouped_shuffling: bool = option(False, "shuffle groups of batches, one batch per worker, together")
    update_epoch_batch_itr: bool = option(II("dataset.grouped_shuffling"), "rebuild the batch iterator every epoch")
    update_ordered_indices_seed: bool = option(
        False, "accepted without effect: the order of masked-LM samples is fixed"
    )


@dataclass(kw_only=True)
class OptimizationConfig(FairseqDataclass):
    """Length of training, learning rate and gradient handling."""

    max_epoch: int = option(0, "stop after this many epochs (0: no limit)", within="[0, inf)")
    max_update: int = option(0, "stop after this many updates (0: no limit)", within="[0, inf)")
    stop_time_hours: float = option(
        0.0, "stop after this many hours of training, earlier runs included (0: no limit)", within="[-1, inf)"
    )
    clip_norm: float = option(0.0, "clip the gradient to this norm (0: do not)", within="[0, inf)")
    skip_bad_updates: int = option(
        0,
        "skip updates whose loss or gradient is not finite, but not more than this many in a row",
        within="[0, inf)",
        new=True,
    )
    sentence_avg: bool = option(False, "accepted without effect on masked_lm, whose loss is per predicted token")
    update_freq: list[int] = option(
        [1], "batches per update; a list gives one value per epoch, the last one stays", within="[1, inf)"
    )
    batches_per_update: int = option(
        0,
        "batches per update of all processes together, whatever their number (0: update_freq for each)",
        within="[0, inf)",
        new=True,
    )
    batch_ramp_updates: int = option(
        0,
        "grow the batches per update from 1 to update-freq, linearly, over this many updates (0: do not)",
        within="[0, inf)",
        new=True,
    )
    lr: list[float] = option(
        [0.25],
        "learning rate (must be given); a list gives one value per epoch for schedules that use it",
        within="(0, inf)",
        asked=True,
    )
    stop_min_lr: float = option(-1.0, "stop when the learning rate falls to this value (-1: never)", within="[-1, inf)")
    use_bmuf: bool = carried(False, BMUF)
    skip_remainder_batch: bool = option(False, "drop the incomplete group of batches at the end of an epoch")
    freeze: str = option(
        "", "comma-separated pieces of names; parameters whose names contain one are not trained, as in _ssm.", new=True
    )
    lr_scales: str = option(
        "",
        "comma-separated pieces of names with factors, as in embed_=0.1,_ssm.=0.5: the learning rate of parameters whose names "
        "contain one is multiplied by it (the last that fits counts)",
        new=True,
    )


@dataclass(kw_only=True)
class CheckpointConfig(FairseqDataclass):
    """Which checkpoints are read, written and kept."""

    save_dir: str = option("checkpoints", "directory of the checkpoints")
    restore_file: str = option(
        "checkpoint_last.pt",
        "checkpoint to continue from; the default looks in save_dir, a missing other file is an error",
    )
    resume: str = option(
        "auto",
        "with the default of restore_file: continue from the newest good checkpoint, or from checkpoint_last only",
        choices=("auto", "last"),
        new=True,
    )
    continue_once: str | None = option(None, "continue from this file unless save_dir already has a last checkpoint")
    finetune_from_model: str | None = option(None, "start from the weights of this checkpoint, nothing else of it")
    reset_dataloader: bool = option(False, "do not restore the position in the data")
    reset_lr_scheduler: bool = option(False, "do not restore the learning-rate schedule")
    reset_meters: bool = option(False, "do not restore statistics")
    reset_optimizer: bool = option(False, "do not restore the optimizer, and count updates from 0")
    optimizer_overrides: str = option("{}", "Python dictionary of optimizer settings that replace the stored ones")
    save_interval: int = option(1, "save every this many epochs", within="[1, inf)")
    save_interval_updates: int = option(0, "save (and validate) every this many updates (0: never)", within="[-1, inf)")
    keep_interval_updates: int = option(
        -1, "keep the last this many of the checkpoints saved by updates (-1: all)", within="[-1, inf)"
    )
    keep_interval_updates_pattern: int = option(
        -1, "additionally keep those whose update is a multiple of this (-1: none)", within="[-1, inf)"
    )
    keep_last_epochs: int = option(-1, "keep the last this many epoch checkpoints (-1: all)", within="[-1, inf)")
    keep_best_checkpoints: int = option(
        -1, "keep this many best checkpoints (-1: only checkpoint_best)", within="[-1, inf)"
    )
    no_save: bool = option(False, "write no checkpoints")
    no_epoch_checkpoints: bool = option(False, "write only the last and best checkpoints")
    no_last_checkpoints: bool = option(False, "do not write checkpoint_last")
    no_save_optimizer_state: bool = option(False, "leave the optimizer state out of checkpoints")
    best_checkpoint_metric: str = option("loss", "validation statistic that decides which checkpoint is best")
    maximize_best_checkpoint_metric: bool = option(False, "the larger that statistic the better")
    patience: int = option(-1, "stop after this many validations without improvement (-1: never)", within="[-1, inf)")
    checkpoint_suffix: str = option("", "text added to the checkpoint file names")
    checkpoint_shard_count: int = option(1, "files that hold one sharded checkpoint", within="[1, inf)")
    load_checkpoint_on_all_dp_ranks: bool = option(False, "accepted without effect (every process reads it)")
    write_checkpoints_asynchronously: bool = option(
        False, "write checkpoints in a background thread", alias="--save-async"
    )
    model_parallel_size: int = option(II("common.model_parallel_size"), "")


@dataclass(kw_only=True)
class EMAConfig(FairseqDataclass):
    """Exponential moving average of the parameters."""

    store_ema: bool = option(False, "keep an exponential moving average of the parameters and store it")
    ema_decay: float = option(0.9999, "weight of the old average in each step", within="[0, 1]")
    ema_start_update: int = option(0, "copy the parameters until this many updates", within="[0, inf)")
    ema_seed_model: str | None = option(None, "checkpoint to start the average from")
    ema_update_freq: int = option(1, "update the average every this many updates", within="[1, inf)")
    ema_fp32: bool = option(False, "keep the average in float32 even if the model is not")


DDP_BACKENDS = ("c10d", "fully_sharded", "legacy_ddp", "no_c10d", "pytorch_ddp", "slowmo")


def _local_rank() -> int:
    value = os.environ.get("LOCAL_RANK", "0")
    return int(value) if value.isdecimal() else 0


def visible_gpus() -> int:
    """GPUs that this process may use, as far as that can be told without their driver; 1 where there are none."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        names = [name.strip() for name in chosen.split(",")]
        return max(1, len(names if "-1" not in names else names[: names.index("-1")]))
    return max(1, sum(name.startswith("nvidia") and name[6:].isdigit() for name in _devices()))


def _devices() -> list[str]:
    try:
        return os.listdir("/dev")
    except OSError:
        return []


@dataclass(kw_only=True)
class DistributedTrainingConfig(FairseqDataclass):
    """Processes, their rendezvous and how gradients and parameters are spread over them."""

    distributed_world_size: int = option(
        visible_gpus, "processes that train together (default: one per GPU)", within="[1, inf)"
    )
    distributed_num_procs: int | None = option(
        0, "processes to start on this machine (set by the launcher)", within="[-1, inf)"
    )
    distributed_rank: int | None = option(0, "rank of this process", within="[0, inf)")
    distributed_backend: str = option("nccl", "communication library")
    distributed_init_method: str | None = option(None, "address of the rendezvous, for example tcp://host:port")
    distributed_port: int = option(-1, "port of the rendezvous (-1: not needed)", within="[-1, 65535]")
    device_id: int = option(
        _local_rank,
        "GPU of this process (default: LOCAL_RANK)",
        within="[0, inf)",
        alias=("--local_rank", "--local-rank"),  # of torch.distributed.launch, before and since torch 2.0
    )
    distributed_no_spawn: bool = option(False, "start no processes even if there are several GPUs")
    ddp_backend: str = option("pytorch_ddp", "how gradients are averaged", choices=DDP_BACKENDS)
    ddp_comm_hook: str = option("none", "compression of gradients on the wire", choices=("none", "fp16", "bf16"))
    bucket_cap_mb: int = option(25, "megabytes of one gradient bucket", within="[1, inf)")
    fix_batches_to_gpus: bool = option(False, "shuffle batches within a worker only, so that each keeps its data")
    find_unused_parameters: bool = option(False, "look for parameters without gradient in every update")
    gradient_as_bucket_view: bool = option(False, "let gradients be views of the buckets, to save memory")
    fast_stat_sync: bool = option(False, "accepted without effect (deprecated)")
    heartbeat_timeout: int = option(
        -1, "end the run after this many seconds without an update (-1: 1800)", within="[-1, inf)"
    )
    broadcast_buffers: bool = option(False, "accepted without effect (no buffers change in training)")
    slowmo_momentum: float | None = carried(None, SLOWMO)
    slowmo_base_algorithm: str = carried("localsgd", SLOWMO)
    localsgd_frequency: int = carried(3, SLOWMO)
    nprocs_per_node: int = option(1, "processes per machine", within="[1, inf)")
    pipeline_model_parallel: bool = carried(False, PIPELINES)
    pipeline_balance: str | None = carried(None, PIPELINES)
    pipeline_devices: str | None = carried(None, PIPELINES)
    pipeline_chunks: int | None = carried(0, PIPELINES)
    pipeline_encoder_balance: str | None = carried(None, PIPELINES)
    pipeline_encoder_devices: str | None = carried(None, PIPELINES)
    pipeline_decoder_balance: str | None = carried(None, PIPELINES)
    pipeline_decoder_devices: str | None = carried(None, PIPELINES)
    pipeline_checkpoint: str = carried("never", PIPELINES, choices=("always", "never", "except_last"))
    zero_sharding: str = option("none", "os is refused: see ddp_backend fully_sharded", choices=("none", "os"))
    fp16: bool = option(II("common.fp16"), "")
    memory_efficient_fp16: bool = option(II("common.memory_efficient_fp16"), "")
    tpu: bool = option(II("common.tpu"), "")
    no_reshard_after_forward: bool = option(False, "fully_sharded: keep whole layers between forward and backward")
    fp32_reduce_scatter: bool = option(False, "fully_sharded: add up gradients in float32, in half precision too")
    cpu_offload: bool = option(False, "fully_sharded: keep the shards, and update them, on the CPU")
    use_sharded_state: bool = option(False, "fully_sharded: each process writes its part of a checkpoint")
    not_fsdp_flatten_parameters: bool = option(False, "accepted without effect (no parameters are flattened)")


SECTIONS: dict[str, type[FairseqDataclass]] = {
    "common": CommonConfig,
    "common_eval": CommonEvalConfig,
    "distributed_training": DistributedTrainingConfig,
    "dataset": DatasetConfig,
    "optimization": OptimizationConfig,
    "checkpoint": CheckpointConfig,
    "ema": EMAConfig,
}


@dataclass(kw_only=True)
class FairseqConfig(FairseqDataclass):
    """The whole configuration of a run."""

    common: CommonConfig = field(default_factory=CommonConfig)
    common_eval: CommonEvalConfig = field(default_factory=CommonEvalConfig)
    distributed_training: DistributedTrainingConfig = field(default_factory=DistributedTrainingConfig)
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    optimization: OptimizationConfig = field(default_factory=OptimizationConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    model: Any = option(MISSING, "the model: its architecture as _name, and settings")
    task: Any = option(None, "the task")
    criterion: Any = option(None, "the loss")
    optimizer: Any = option(None, "the optimizer")
    lr_scheduler: Any = option(None, "the learning-rate schedule")
    scoring: Any = option(None, HIDDEN)
    bpe: Any = option(None, "the byte-pair encoding of raw text")
    tokenizer: Any = option(None, "the tokenizer of raw text")
    ema: EMAConfig = field(default_factory=EMAConfig)
