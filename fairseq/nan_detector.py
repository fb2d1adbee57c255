"""Old path of the detector of values that are not finite."""

from fairseq.training.nan_detector import NanDetector

__all__ = ["NanDetector"]
