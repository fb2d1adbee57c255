"""Learning-rate schedules."""

from fairseq.lazy import exporter

__getattr__, __dir__, __all__ = exporter(
    __name__,
    {
        "FairseqLRScheduler": "fairseq_lr_scheduler",
        "LegacyFairseqLRScheduler": "fairseq_lr_scheduler",
        "build_lr_scheduler": "build",
        "register_lr_scheduler": "build",
        "LR_SCHEDULER_REGISTRY": "build",
    },
)
