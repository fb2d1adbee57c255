"""Loading a model by name, address or directory, with its task and BPE: download, cache, unpack."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fairseq.data.cached_path import cache_directory, download, url_to_filename
from fairseq.dataclass.user_module import import_user_module
from fairseq.errors import CheckpointError, DataNotFoundError
from fairseq.models.loading import load_model_ensemble_and_task
from fairseq.models.roberta.addresses import CHECKPOINTS, checkpoint_in
from fairseq.registry import FORMATS

TIMEOUT_SECONDS = 20
CONVERSION = 2  # raised when folders of other programs are read in another way: what the cache has is then made anew


def is_address(name: str) -> bool:
    return name.startswith(("http://", "https://", "s3://"))


def model_directory(name_or_path: str, shown_as: str, files: str) -> Path:
    """The local directory of ``name_or_path`` (directory, archive or address).

    ``shown_as`` is what the user typed and ``files`` what is looked for, for the error: DataNotFoundError when
    nothing is there or the address cannot be reached.
    """
    if is_address(name_or_path):
        return _fetched(name_or_path, shown_as, files)
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        return path
    if path.is_file() and tarfile.is_tarfile(path):
        target = cache_directory() / url_to_filename(str(path.resolve()))
        if not target.is_dir() or target.stat().st_mtime < path.stat().st_mtime:
            shutil.rmtree(target, ignore_errors=True)
            unpack(path, target)
        return target
    if path.is_file():
        raise DataNotFoundError(f"{shown_as!r} is a file, not a directory or archive with {files}; name its directory")
    raise DataNotFoundError(
        f"{shown_as!r} is neither a directory with {files} nor a published model; check the spelling of the path or name"
    )


def _fetched(address: str, shown_as: str, files: str) -> Path:
    """The unpacked archive at ``address``, from the cache if it is there (whatever its version), else downloaded.

    The cache names are those of the original, sha256(address) with an optional sha256(ETag) after a dot, so that a
    cache it filled is used; unlike it, a filled cache works offline.
    """
    cache = cache_directory()
    key = url_to_filename(address)
    for found in sorted(cache.glob(f"{key}*")):
        if found.suffix not in (".json", ".lock", ".part") and found.is_dir():
            return found
        if found.is_file() and tarfile.is_tarfile(found):
            unpacked = found.with_name(f"{found.name}.unpacked")
            if not unpacked.is_dir():
                unpack(found, unpacked)
            return unpacked
    target = cache / key
    try:
        download(address, target, timeout=TIMEOUT_SECONDS, publish=unpack)
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise DataNotFoundError(
            f"cannot download {shown_as!r} from {address} ({reason}); without a network put {files} from that archive "
            f"into the directory {target} (or into any directory, and give its path instead of the name)"
        ) from None
    return target


def unpack(archive: Path, target: Path) -> None:
    """Extract ``archive`` into ``target``; a single top directory in it becomes ``target`` itself.

    Members that point outside, links out of the tree and devices are refused by tar's ``data`` filter.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, suffix=".part") as directory:
        content = Path(directory) / "content"
        try:
            with tarfile.open(archive) as tar:
                _extract(tar, content)
        except (tarfile.TarError, OSError, EOFError) as error:
            raise CheckpointError(f"cannot unpack the archive {archive}: {error}") from None
        inside = list(content.iterdir())
        top = inside[0] if len(inside) == 1 and inside[0].is_dir() else content
        try:
            os.replace(top, target)  # at once: a killed process leaves no half-filled directory behind
        except OSError:
            if not target.is_dir():  # another process has just unpacked the same
                raise


def _extract(tar: tarfile.TarFile, target: Path) -> None:
    if hasattr(tarfile, "data_filter"):
        tar.extractall(target, filter="data")
        return
    # Before Python 3.10.12 and 3.11.4: plain files and directories inside, nothing else.
    home = target.resolve()
    for member in tar.getmembers():
        place = (home / member.name).resolve()
        if not (member.isfile() or member.isdir()) or (place != home and home not in place.parents):
            raise tarfile.TarError(f"{member.name!r} is no file inside the archive")
    tar.extractall(target)


# Files of a model directory that set an option of the BPE.
BPE_FILES = {
    "code": "bpe_codes",
    "bpecodes": "bpe_codes",
    "sentencepiece.bpe.model": "sentencepiece_model",
    "spiece.model": "sentencepiece_model",
    "merges.txt": "bpe_merges",
    "vocab.json": "bpe_vocab",
    "encoder.json": "gpt2_encoder_json",
    "vocab.bpe": "gpt2_vocab_bpe",
    "vocab.txt": "bpe_vocab_file",
    "tokenizer.json": "hf_tokenizer_file",
}


class FamilyBPE(str):
    """The BPE that models of a family have where neither the caller nor the checkpoint names one."""


class Pretrained(NamedTuple):
    """A loaded checkpoint: configuration, task (with its dictionary), one model a checkpoint file.

    ``overrides`` are the settings that were given or found beside the checkpoint, and replaced stored ones. ``foreign``: it
    was a folder of Transformers, whose rows are no family's.
    """

    cfg: Any
    task: Any
    models: list[Any]
    overrides: dict[str, Any]
    foreign: bool = False


def load_pretrained(
    model_name_or_path: str,
    checkpoint_file: str = CHECKPOINTS[0],
    data_name_or_path: str | None = ".",
    archives: Mapping[str, Any] | None = None,
    **overrides: Any,
) -> Pretrained:
    """Load the checkpoint ``checkpoint_file`` of a model directory, archive, address or published name.

    ``archives`` maps published names to addresses, or to dicts with ``path`` and default settings. Several files,
    separated by ``os.pathsep``, make an ensemble. Of the directory of a training, the best checkpoint (else the last) and
    the data of that training stand in for a missing ``model.pt`` and ``dict.txt``. ``data_name_or_path`` (where
    ``dict.txt`` is) is relative to the model's directory when it begins with a dot. Raises DataNotFoundError and
    CheckpointError in one sentence.
    """
    archives = archives or {}
    overrides = dict(overrides)
    place = archives.get(model_name_or_path, model_name_or_path)
    if isinstance(place, Mapping):
        for key, value in place.items():
            if key == "checkpoint_file":
                checkpoint_file = value
            elif key != "path":
                overrides.setdefault(key, value)
        place = place["path"]
    place = os.fspath(place)
    if not is_address(place) and place.endswith(".pt") and Path(place).is_file():
        # The path of the checkpoint itself, as newcomers give it.
        place, checkpoint_file = os.path.split(place)
        place = place or "."
    directory = model_directory(place, str(model_name_or_path), f"{checkpoint_file} and dict.txt")
    given = directory
    if checkpoint_file == CHECKPOINTS[0]:
        directory = _converted(directory)
        found = checkpoint_in(directory)
        checkpoint_file = checkpoint_file if found is None else found.name
    there = any((directory / name).exists() for name in ("dict.txt", "input0"))
    if data_name_or_path == "." and checkpoint_file.startswith("checkpoint") and not there:
        data_name_or_path = None  # the directory of a training: its data are elsewhere
    if data_name_or_path is not None:
        overrides["data"] = str(_data_directory(data_name_or_path, directory, archives))
    for file, option in BPE_FILES.items():
        if (directory / file).is_file():
            overrides.setdefault(option, str(directory / file))
    import_user_module(argparse.Namespace(user_dir=overrides.get("user_dir")))
    files = [str(directory / name) for name in checkpoint_file.split(os.pathsep)]
    models, cfg, task = load_model_ensemble_and_task(files, overrides)
    return Pretrained(cfg, task, models, overrides, directory != given)


def format_of(directory: Path) -> Any:
    """The format of a folder of Transformers, by its ``config.json``; None for any other folder."""
    configuration = directory / "config.json"
    if not configuration.is_file() or checkpoint_in(directory) is not None:
        return None
    try:
        config = json.loads(configuration.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{configuration} cannot be read as JSON: {error}") from None
    formats = (FORMATS.get(name) for name in FORMATS.names() if name.startswith("hf-"))
    return next((kind for kind in formats if isinstance(config, dict) and kind.recognizes(config)), None)


def _converted(directory: Path) -> Path:
    """``directory``, or if it is a model of Transformers, the same as one of ours: made once, in the cache."""
    found = format_of(directory)
    if found is None:
        return directory
    facts: list[Any] = [CONVERSION]
    facts += [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in sorted(directory.iterdir())]
    target = cache_directory() / "converted" / url_to_filename(f"{directory.resolve()} {facts}")
    if not target.is_dir():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, suffix=".part") as scratch:
            made = Path(scratch) / "model"
            model = found.read(directory, {})
            FORMATS.get("fairseq").write(model, made)
            for name, file in model.files.items():
                shutil.copyfile(file, made / name)
            with contextlib.suppress(OSError):  # another process was quicker
                made.rename(target)
    return target


def _data_directory(name: str, model_dir: Path, archives: Mapping[str, Any]) -> Path:
    place = archives.get(name, name)
    if isinstance(place, Mapping):
        place = place["path"]
    place = os.fspath(place)
    if place.startswith("."):
        return model_dir / place
    return model_directory(place, str(name), "dict.txt")
