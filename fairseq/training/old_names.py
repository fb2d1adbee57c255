"""What training scripts of the original ask of its trainer, and the trainer of today has no use for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from fairseq.distributed import utils as distributed

if TYPE_CHECKING:
    from fairseq.dataclass.configs import FairseqConfig


class OldTrainerNames:
    """Methods and properties under their old names."""

    cfg: FairseqConfig
    criterion: nn.Module
    optimizer: Any
    lr_scheduler: Any
    peers: Any

    tpu = False
    use_distributed_wrapper = False
    always_call_state_dict_during_save_checkpoint = False
    data_parallel_process_group = None

    @property
    def is_fsdp(self) -> bool:
        return self.peers.shares_passes

    @property
    def data_parallel_world_size(self) -> int:
        return distributed.get_data_parallel_world_size()

    @property
    def data_parallel_rank(self) -> int:
        return distributed.get_data_parallel_rank()

    @property
    def should_save_checkpoint_on_current_rank(self) -> bool:
        return self.data_parallel_rank == 0

    @property
    def checkpoint_suffix(self) -> str:
        return self.cfg.checkpoint.checkpoint_suffix or ""

    def get_criterion(self) -> nn.Module:
        return self.criterion

    def zero_grad(self) -> None:
        self.optimizer.zero_grad()

    def clip_grad_norm(self, clip_norm: float) -> Tensor:
        return self.optimizer.clip_grad_norm(clip_norm)

    def lr_step_begin_epoch(self, epoch: int) -> float:
        """Adjust the learning rate to ``epoch``, which begins; returns it."""
        self.lr_scheduler.step_begin_epoch(epoch)
        return self.optimizer.get_lr()

    def consolidate_optimizer(self) -> None:
        """Nothing: every process has the whole state of the optimizer, or collects it when it saves."""

    def reset_dummy_batch(self, batch: Any) -> None:
        """Nothing: a process without a batch makes its own."""
