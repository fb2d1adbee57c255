"""Old path of the helpers that cut text files for several workers."""

from fairseq.data.chunks import Chunker, find_offsets

__all__ = ["Chunker", "find_offsets"]
