"""Log format of the commands, and the extra log file."""

from __future__ import annotations

import functools
import logging
import logging.config
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from fairseq.errors import ConfigError

FORMAT = "%(asctime)s | %(levelname)s | %(name)s | %(message)s"
DATE_FORMAT = "%Y-%m-%d %H:%M:%S"
STATS_LOGGER = "fairseq.logging.progress_bar"  # the original's name: logging configurations refer to it
TRAIN_LOGGER = "fairseq_cli.train"


def log_level() -> int:
    """The level named by $LOGLEVEL (a name in any case, or a number), INFO when it is unset."""
    text = os.environ.get("LOGLEVEL", "INFO").strip().upper() or "INFO"
    if text.isdecimal():
        return int(text)
    level = logging.getLevelName(text)
    if not isinstance(level, int):
        raise ConfigError(f"LOGLEVEL={text} is not a log level; use DEBUG, INFO, WARNING, ERROR or CRITICAL")
    return level


@functools.cache
def warn_once(logger: logging.Logger, message: str) -> None:
    """Log a warning that this process has not had yet."""
    logger.warning("%s", message)


class _AboveBars(logging.StreamHandler):  # type: ignore[type-arg]
    """Takes a live progress bar away while it prints a line, and puts it back below."""

    def emit(self, record: logging.LogRecord) -> None:
        bars = sys.modules.get("tqdm")  # no bar without it
        if bars is None:
            super().emit(record)
            return
        with bars.tqdm.external_write_mode(file=self.stream):
            super().emit(record)


def ends_quietly(handler: logging.Handler) -> logging.Handler:
    """``handler``, which now says once that it cannot write any more (a full disk, a reader that is gone): the work goes on."""
    if "handleError" in vars(handler):
        return handler
    report = handler.handleError

    def fail(record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            report(record)
            return
        _lead_nowhere(getattr(handler, "stream", None))
        place = getattr(handler, "baseFilename", "standard output")
        with suppress(OSError):
            print(f"the log to {place} ends here ({error.strerror}); the run goes on", file=sys.stderr)

    handler.handleError = fail  # type: ignore[method-assign]
    return handler


def _lead_nowhere(stream: Any) -> None:
    """Forget what ``stream`` could not write, and all that it will be given: its buffer would fail at every flush."""
    with suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def log_to_files(logger: logging.Logger, message: object) -> None:
    """Log ``message`` at INFO to the log files alone: what is too long for the eyes of whoever waits."""
    record = logger.makeRecord(logger.name, logging.INFO, __file__, 0, message, (), None)
    for handler in (*logger.handlers, *logging.root.handlers):
        if isinstance(handler, logging.FileHandler):
            handler.handle(record)


def configure_logging(
    log_file: str | None = None,
    reset: bool = False,
    job_logging: Mapping[str, Any] | None = None,
    form: str = FORMAT,
) -> None:
    """Log to stdout in the commands' format, unless the root logger has handlers already (hydra, a test).

    ``job_logging``: hydra's own settings, for a process that hydra did not start. ``reset`` removes those handlers first
    (``common.reset_logging``). ``log_file``: see `add_log_file`.
    """
    if job_logging is not None and not logging.root.handlers:
        logging.config.dictConfig(dict(job_logging))
    handlers = [_AboveBars(sys.stdout)]
    logging.basicConfig(format=form, datefmt=DATE_FORMAT, level=log_level(), handlers=handlers, force=reset)
    for handler in logging.root.handlers:
        ends_quietly(handler)
    if log_file:
        add_log_file(log_file)


def log_warnings_only(rank: int | None) -> None:
    """On process ``rank`` of a run, which leaves it to the first one to tell how it goes."""
    configure_logging(form=FORMAT.replace("%(message)s", f"process {rank}: %(message)s"))
    logging.getLogger().setLevel(max(logging.WARNING, log_level()))


def add_log_file(path: str) -> None:
    """Append the messages of the statistics and training loggers to ``path``; once, however often it is called.

    Raises ConfigError when the file cannot be opened.
    """
    target = os.path.abspath(path)
    for name in (STATS_LOGGER, TRAIN_LOGGER):
        logger = logging.getLogger(name)
        if any(isinstance(h, logging.FileHandler) and h.baseFilename == target for h in logger.handlers):
            continue
        try:
            handler = logging.FileHandler(target, encoding="utf-8")
            ends_quietly(handler)
            logger.addHandler(handler)
        except OSError as error:
            raise ConfigError(f"cannot write the log file {path}: {error.strerror}; choose another log_file") from error


def close_log_file(path: str) -> None:
    """No more messages go to ``path``."""
    target = os.path.abspath(path)
    for name in (STATS_LOGGER, TRAIN_LOGGER):
        logger = logging.getLogger(name)
        for handler in logger.handlers[:]:
            if isinstance(handler, logging.FileHandler) and handler.baseFilename == target:
                logger.removeHandler(handler)
                handler.close()
