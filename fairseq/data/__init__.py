"""Everything between a text file and a batch: dictionary, corpora, wrappers, batching, iterators."""

from fairseq.lazy import exporter
from fairseq.refusals import by_name

__getattr__, __dir__, __all__ = exporter(
    __name__,
    by_name(
        {
            "": """
                data_utils data_utils_fast encoders indexed_dataset iterators token_block_utils_fast
            """,
            "concat_dataset": "ConcatDataset ConcatSentencesDataset",
            "datasets": "BaseWrapperDataset FairseqDataset NestedDictionaryDataset",
            "dictionary": "Dictionary",
            "fairseq.compat.data": "LRUCacheDataset",
            "indexed_dataset": "MMapIndexedDataset",
            "iterators": "CountingIterator EpochBatchIterator GroupedIterator ShardedIterator",
            "legacy_index": "IndexedCachedDataset IndexedDataset IndexedRawTextDataset",
            "masking": "MaskTokensDataset",
            "sampling": "GroupByLengthDataset ResamplingDataset SortDataset SubsampleDataset",
            "token_block_dataset": "TokenBlockDataset",
            "wrappers": """
                AppendTokenDataset IdDataset LeftPadDataset ListDataset NumSamplesDataset NumelDataset
                OffsetTokensDataset PadDataset PrependTokenDataset RandomCropDataset RawLabelDataset RightPadDataset
                RightPaddingMaskDataset RollDataset StripTokenDataset TruncateDataset
            """,
        }
    ),
)
