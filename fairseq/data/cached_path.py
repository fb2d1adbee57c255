"""Files named by path or address: addresses are downloaded once into the original's cache directory.

A cached file is called by the SHA-256 of its address, followed by ``.`` and the SHA-256 of its ETag when the server
sent one, with a side-car ``<name>.json`` that holds both. Unlike the original, a warm cache works without a network.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from fairseq.errors import DataNotFoundError

TIMEOUTS = (10, 20, 40, 60, 60)  # seconds of the successive attempts


def cache_directory() -> Path:
    """``$PYTORCH_FAIRSEQ_CACHE``, or ``pytorch_fairseq`` in torch's own cache directory."""
    own = os.environ.get("PYTORCH_FAIRSEQ_CACHE")
    if own:
        return Path(own)
    home = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    torch_home = os.environ.get("TORCH_HOME", os.path.join(home, "torch"))
    return Path(torch_home).expanduser() / "pytorch_fairseq"


def url_to_filename(url: str, etag: str | None = None) -> str:
    """The name of the cached file."""
    name = hashlib.sha256(url.encode()).hexdigest()
    return f"{name}.{hashlib.sha256(etag.encode()).hexdigest()}" if etag else name


def cached_path(
    url_or_filename: str | os.PathLike[str], cache_dir: str | os.PathLike[str] | None = None, option: str | None = None
) -> str:
    """A local path: the given one, or where the address is cached, downloading it if need be.

    ``option`` is the flag that could name a local file instead. Raises DataNotFoundError with what to put where.
    """
    name = os.fspath(url_or_filename)
    if name.startswith(("http://", "https://")):
        return get_from_cache(name, cache_dir, option)
    name = name.removeprefix("file://")
    if not os.path.exists(name):
        raise DataNotFoundError(f"file not found: {name}" + (f" (given as {option})" if option else ""))
    return name


def get_from_cache(url: str, cache_dir: str | os.PathLike[str] | None = None, option: str | None = None) -> str:
    """See `cached_path`."""
    directory = Path(cache_dir) if cache_dir is not None else cache_directory()
    try:
        etag = _etag(url)
    except OSError as error:
        found = _newest(directory, url)
        if found:
            return str(found)
        raise DataNotFoundError(_advice(url, directory, option, error)) from None
    path = directory / url_to_filename(url, etag)
    if not path.exists() and etag is None:
        path = _newest(directory, url) or path
    if not path.exists():
        try:
            download(url, path, etag)
        except OSError as error:
            raise DataNotFoundError(_advice(url, directory, option, error)) from None
    return str(path)


def _advice(url: str, directory: Path, option: str | None, error: OSError) -> str:
    reason = getattr(error, "reason", None) or error
    other = f", or give a local copy with {option}" if option else ""
    return (
        f"cannot download {url} ({reason}) and it is not in the cache: download it elsewhere and save it as"
        f" {directory / url_to_filename(url)}{other}"
    )


def _newest(directory: Path, url: str) -> Path | None:
    """A cached copy of ``url`` whatever its ETag."""
    name = url_to_filename(url)
    found = [*directory.glob(name), *directory.glob(f"{name}.*")]
    copies = [path for path in found if path.suffix not in (".json", ".part")]
    return max(copies, key=lambda path: path.stat().st_mtime, default=None)


def _etag(url: str) -> str | None:
    """The server's ETag; None when it sends none or does not answer HEAD. Raises OSError without a connection."""
    request = urllib.request.Request(url, method="HEAD")
    for timeout in TIMEOUTS:
        try:
            with urllib.request.urlopen(request, timeout=timeout) as answer:
                return answer.headers.get("ETag")
        except urllib.error.HTTPError:
            return None
        except TimeoutError:
            continue
    raise TimeoutError(f"no answer within {TIMEOUTS[-1]} seconds")


def download(
    url: str,
    path: Path,
    etag: str | None = None,
    timeout: float = TIMEOUTS[-1],
    publish: Callable[[Path, Path], object] = os.replace,
) -> None:
    """Into a temporary file, which ``publish(file, path)`` moves or unpacks when it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as out, urllib.request.urlopen(url, timeout=timeout) as answer:
            shutil.copyfileobj(answer, out)
        publish(Path(temporary), path)
    finally:
        Path(temporary).unlink(missing_ok=True)
    path.with_name(path.name + ".json").write_text(json.dumps({"url": url, "etag": etag}), encoding="utf-8")
