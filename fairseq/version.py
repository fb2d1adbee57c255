"""Old path of the version number."""

from fairseq import __version__

__all__ = ["__version__"]
