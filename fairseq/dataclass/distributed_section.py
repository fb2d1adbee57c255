"""The section ``distributed_training``: field names, defaults and flags of the original."""

from __future__ import annotations

import os
from dataclasses import dataclass

from fairseq.dataclass.base import II, FairseqDataclass, option

DDP_BACKENDS = ("c10d", "fully_sharded", "legacy_ddp", "no_c10d", "pytorch_ddp", "slowmo")
PIPELINE = "out of scope: pipeline parallelism"
SLOWMO = "out of scope: slow momentum"


def _local_rank() -> int:
    value = os.environ.get("LOCAL_RANK", "0")
    return int(value) if value.isdigit() else 0


@dataclass(kw_only=True)
class DistributedTrainingConfig(FairseqDataclass):
    """Processes, their rendezvous and how gradients and parameters are spread over them."""

    distributed_world_size: int = option(1, "processes that train together")
    distributed_num_procs: int | None = option(0, "processes to start on this machine (set by the launcher)")
    distributed_rank: int | None = option(0, "rank of this process")
    distributed_backend: str = option("nccl", "communication library")
    distributed_init_method: str | None = option(None, "address of the rendezvous, for example tcp://host:port")
    distributed_port: int = option(-1, "port of the rendezvous (-1: not needed)")
    device_id: int = option(_local_rank, "GPU of this process (default: LOCAL_RANK)", alias="--local_rank")
    distributed_no_spawn: bool = option(False, "start no processes even if there are several GPUs")
    ddp_backend: str = option("pytorch_ddp", "how gradients are averaged", choices=DDP_BACKENDS)
    ddp_comm_hook: str = option("none", "compression of gradients on the wire", choices=("none", "fp16"))
    bucket_cap_mb: int = option(25, "megabytes of one gradient bucket")
    fix_batches_to_gpus: bool = option(False, "shuffle batches within a worker only, so that each keeps its data")
    find_unused_parameters: bool = option(False, "look for parameters without gradient in every update")
    gradient_as_bucket_view: bool = option(False, "let gradients be views of the buckets, to save memory")
    fast_stat_sync: bool = option(False, "accepted without effect (deprecated)")
    heartbeat_timeout: int = option(-1, "kill the job after so many seconds without progress (-1: never)")
    broadcast_buffers: bool = option(False, "copy buffers from rank 0 at every update")
    slowmo_momentum: float | None = option(None, SLOWMO)
    slowmo_base_algorithm: str = option("localsgd", SLOWMO)
    localsgd_frequency: int = option(3, SLOWMO)
    nprocs_per_node: int = option(1, "processes per machine")
    pipeline_model_parallel: bool = option(False, PIPELINE)
    pipeline_balance: str | None = option(None, PIPELINE)
    pipeline_devices: str | None = option(None, PIPELINE)
    pipeline_chunks: int | None = option(0, PIPELINE)
    pipeline_encoder_balance: str | None = option(None, PIPELINE)
    pipeline_encoder_devices: str | None = option(None, PIPELINE)
    pipeline_decoder_balance: str | None = option(None, PIPELINE)
    pipeline_decoder_devices: str | None = option(None, PIPELINE)
    pipeline_checkpoint: str = option("never", PIPELINE, choices=("always", "never", "except_last"))
    zero_sharding: str = option("none", "shard the optimizer state over the workers", choices=("none", "os"))
    fp16: bool = option(II("common.fp16"), "")
    memory_efficient_fp16: bool = option(II("common.memory_efficient_fp16"), "")
    tpu: bool = option(II("common.tpu"), "")
    no_reshard_after_forward: bool = option(False, "keep full parameters between forward and backward (FSDP)")
    fp32_reduce_scatter: bool = option(False, "reduce gradients in float32 (FSDP)")
    cpu_offload: bool = option(False, "keep parameters and optimizer state on the CPU (FSDP)")
    use_sharded_state: bool = option(False, "write one checkpoint file per worker (FSDP)")
    not_fsdp_flatten_parameters: bool = option(False, "do not flatten parameters (FSDP)")
