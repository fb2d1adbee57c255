"""Old path of the moving average of a model's weights."""

from fairseq.optim.ema import EMA

__all__ = ["EMA"]
