"""Tasks: a dictionary, data sets, and how a model is trained and evaluated on them."""

from fairseq.lazy import exporter

__getattr__, __dir__, __all__ = exporter(
    __name__,
    {
        "FairseqTask": "fairseq_task",
        "LegacyFairseqTask": "fairseq_task",
        "TASK_DATACLASS_REGISTRY": "registration",
        "TASK_REGISTRY": "registration",
        "get_task": "registration",
        "register_task": "registration",
        "setup_task": "registration",
    },
)
