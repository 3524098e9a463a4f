"""Exceptions. Each message is one line that says what was wrong, where, and what to do."""

import difflib
from collections.abc import Iterable

__all__ = [
    "ConfigError",
    "DataError",
    "LoweringError",
    "MessageError",
    "ModelError",
    "ProgramError",
    "RunError",
    "TrainpoolError",
    "did_you_mean",
]


class TrainpoolError(Exception):
    """Base of every error that a user can cause and mend; the command line prints it and exits with code 2."""


class ConfigError(TrainpoolError):
    """A name, option or value that does not exist or does not fit."""


class DataError(TrainpoolError):
    """A data set that is missing, unreadable or inconsistent."""


class ModelError(TrainpoolError):
    """A model, loss or preprocessing function that cannot be trained."""


class LoweringError(ModelError):
    """A model, loss or preprocessing function that trains in PyTorch, but cannot become a program."""


class ProgramError(TrainpoolError):
    """A folder that is no program, or a program that does not fit the task."""


class RunError(TrainpoolError):
    """A run that cannot start, continue or be resumed."""


class MessageError(TrainpoolError):
    """Bytes that are not a well-formed message."""


def did_you_mean(word: str, words: Iterable[str]) -> str:
    """A hint such as " (did you mean 'admm'?)" where `word` looks like one of `words`, otherwise nothing."""
    close = difflib.get_close_matches(word, list(words), 1)
    return f" (did you mean {close[0]!r}?)" if close else ""
