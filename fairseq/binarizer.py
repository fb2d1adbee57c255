"""Old path of the binarizer classes."""

from fairseq.data.binarizer import (
    Binarizer,
    BinarizeSummary,
    FileBinarizer,
    LegacyBinarizer,
    VocabularyDatasetBinarizer,
)

__all__ = ["BinarizeSummary", "Binarizer", "FileBinarizer", "LegacyBinarizer", "VocabularyDatasetBinarizer"]
