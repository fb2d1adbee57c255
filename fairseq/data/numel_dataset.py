"""Old path, imported by plugins; see `fairseq.data.attributes`."""

from fairseq.data.attributes import NumelDataset

__all__ = ["NumelDataset"]
