"""Optimizers, precision modes and learning-rate schedules."""

from fairseq.lazy import exporter

__getattr__, __dir__, __all__ = exporter(
    __name__,
    {
        "FairseqOptimizer": "fairseq_optimizer",
        "LegacyFairseqOptimizer": "fairseq_optimizer",
        "build_optimizer": "fairseq_optimizer",
        "register_optimizer": "fairseq_optimizer",
        "OPTIMIZER_REGISTRY": "fairseq_optimizer",
        "FairseqAdam": "adam",
        "FairseqAdamW": "adam",
        "FP16Optimizer": "fp16_optimizer",
        "MemoryEfficientFP16Optimizer": "fp16_optimizer",
        "AMPOptimizer": "amp_optimizer",
        "DynamicLossScaler": "fp16_optimizer",
        "EMA": "ema",
        "lr_scheduler": "",
        "precision": "",
    },
)
