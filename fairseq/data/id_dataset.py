"""Old path, imported by plugins; see `fairseq.data.attributes`."""

from fairseq.data.attributes import IdDataset

__all__ = ["IdDataset"]
