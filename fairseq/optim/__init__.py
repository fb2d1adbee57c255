"""Optimizers, precision modes and learning-rate schedules."""

from fairseq.lazy import exporter

__getattr__, __dir__, __all__ = exporter(
    __name__,
    {
        "FairseqOptimizer": "fairseq_optimizer",
        "LegacyFairseqOptimizer": "fairseq_optimizer",
        "build_optimizer": "build",
        "register_optimizer": "build",
        "OPTIMIZER_REGISTRY": "build",
        "FairseqAdam": "adam",
        "FairseqAdamW": "adamw",
        "FP16Optimizer": "fp16_optimizer",
        "MemoryEfficientFP16Optimizer": "fp16_optimizer",
        "AMPOptimizer": "amp_optimizer",
        "DynamicLossScaler": "dynamic_loss_scaler",
        "EMA": "ema",
        "lr_scheduler": "",
        "precision": "",
    },
)
