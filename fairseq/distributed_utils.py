"""Old path of the distributed helpers."""

from fairseq.distributed.utils import *  # noqa: F403
