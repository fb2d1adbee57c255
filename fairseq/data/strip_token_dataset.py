"""Old path, imported by plugins; see `fairseq.data.token_edits`."""

from fairseq.data.token_edits import StripTokenDataset

__all__ = ["StripTokenDataset"]
