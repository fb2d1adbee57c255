"""Old path of the line tokenizer."""

from fairseq.data.text import SPACE_NORMALIZER, tokenize_line

__all__ = ["SPACE_NORMALIZER", "tokenize_line"]
