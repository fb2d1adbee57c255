"""Old path, imported by plugins; see `fairseq.data.attributes`."""

from fairseq.data.attributes import ListDataset

__all__ = ["ListDataset"]
