"""Old path, imported by plugins; see `fairseq.data.token_edits`."""

from fairseq.data.token_edits import PrependTokenDataset

__all__ = ["PrependTokenDataset"]
