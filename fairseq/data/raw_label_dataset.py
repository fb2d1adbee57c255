"""Old path, imported by plugins; see `fairseq.data.attributes`."""

from fairseq.data.attributes import RawLabelDataset

__all__ = ["RawLabelDataset"]
