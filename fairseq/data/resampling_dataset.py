"""Old path, imported by plugins; see `fairseq.data.selection`."""

from fairseq.data.selection import ResamplingDataset

__all__ = ["ResamplingDataset"]
