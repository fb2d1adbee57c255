"""Old path of the trainer."""

from fairseq.training.trainer import Trainer

__all__ = ["Trainer"]
