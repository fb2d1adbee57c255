"""Old path, imported by plugins; see `fairseq.data.selection`."""

from fairseq.data.selection import SortDataset

__all__ = ["SortDataset"]
