"""Old path, imported by plugins; see `fairseq.data.token_edits`."""

from fairseq.data.token_edits import AppendTokenDataset

__all__ = ["AppendTokenDataset"]
