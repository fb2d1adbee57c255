"""Old path of the download cache."""

from fairseq.data.cached_path import cache_directory, cached_path, get_from_cache, url_to_filename

PYTORCH_FAIRSEQ_CACHE = str(cache_directory())

__all__ = ["PYTORCH_FAIRSEQ_CACHE", "cached_path", "get_from_cache", "url_to_filename"]
