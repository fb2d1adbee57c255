"""Errors that are the user's to fix: one clear sentence each, printed by the commands without a traceback.

Every class also derives from the built-in error that old callers caught, so that ``except ValueError`` keeps working.
"""

from __future__ import annotations


class FairseqError(Exception):
    """Base of everything a user can cause and repair; the message names the thing, the value and what to do."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class ConfigError(FairseqError, ValueError):
    """A wrong option, key or combination of settings."""


class DataError(FairseqError, ValueError):
    """A data file or dictionary that is malformed, truncated or does not fit."""


class DataNotFoundError(FairseqError, FileNotFoundError):
    """A data file or directory that is not there."""


class CheckpointError(FairseqError, RuntimeError):
    """A checkpoint that cannot be read, written or fitted to the model."""


class OutOfScopeError(FairseqError, NotImplementedError):
    """Something this project deliberately does not do (sequence to sequence, speech, TPU, ...)."""


class WorkerError(FairseqError, RuntimeError):
    """A process that worked for this one and is gone."""


class TrainingError(FairseqError, RuntimeError):
    """A run that cannot go on."""


class NonFiniteError(TrainingError, FloatingPointError):
    """A loss or gradient that is NaN or infinite."""


class LostContactError(TrainingError):
    """Another process has ended or does not answer; what happened is for that one to say."""
