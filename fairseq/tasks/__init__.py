"""Tasks: a dictionary, datasets, and how a model is trained and evaluated on them."""

from fairseq.lazy import exporter

__getattr__, __dir__, __all__ = exporter(
    __name__,
    {
        "FairseqTask": "fairseq_task",
        "LegacyFairseqTask": "fairseq_task",
        "TASK_DATACLASS_REGISTRY": "fairseq_task",
        "TASK_REGISTRY": "fairseq_task",
        "get_task": "fairseq_task",
        "register_task": "fairseq_task",
        "setup_task": "fairseq_task",
    },
)
