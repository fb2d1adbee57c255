"""The zip archive that a checkpoint is since torch 1.6, looked at before torch reads it.

torch believes the sizes that the archive states and leaves the checksums of the records alone, so that a flipped bit is
loaded as another weight. Reading a file once more for its sums takes a third of a second for each gigabyte.
"""

from __future__ import annotations

import errno
import os
import struct
import zipfile
import zlib

from fairseq.errors import CheckpointError

MOST_PACKED = 20  # torch does not compress at all, and weights hardly can be
PACKED_ALLOWED = 1 << 26  # bytes
_CHUNK = 1 << 20
# What the library raises for an archive that is not as it should be, beside its own error.
_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    KeyError,
    IndexError,
    OverflowError,
    ValueError,
    RuntimeError,  # encrypted, or compressed in a way that it does not know
)


def check_archive(name: str) -> None:
    """Compare every record of the archive ``name`` with its checksum.

    Raises CheckpointError when it is damaged, or when its records are a multiple of the file's size. An archive that was
    written without sums (all are 0, ``torch.serialization.set_crc32_options(False)``) passes.
    """
    try:
        with zipfile.ZipFile(name) as archive:
            records = archive.infolist()
            total, size = sum(record.file_size for record in records), os.path.getsize(name)
            if total > MOST_PACKED * size + PACKED_ALLOWED:
                raise CheckpointError(
                    f"checkpoint {name} is refused: it has {size:,} bytes, which would become {total:,}; it was compressed "
                    "by somebody, torch does not do that"
                )
            if any(record.CRC for record in records):
                for record in records:
                    _check_sum(archive, record)
    except CheckpointError:
        raise
    except (*_DAMAGE, OSError) as error:
        if isinstance(error, OSError) and error.errno not in (
            None,
            errno.EINVAL,
        ):  # not of a place before the beginning
            raise CheckpointError(f"cannot read checkpoint {name}: {error.strerror}") from error
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{name} is truncated or damaged ({reason}); use another checkpoint") from None


def _check_sum(archive: zipfile.ZipFile, record: zipfile.ZipInfo) -> None:
    """Read all of ``record``: the library compares the sum at its end."""
    with archive.open(record) as file:
        while file.read(_CHUNK):
            pass
