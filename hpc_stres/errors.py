"""Errors that a user can fix: one to three lines on stderr and an exit code, never a traceback."""

import errno
import tokenize
import zipfile
import zlib

# What a damaged .npz can raise in zipfile, zlib and NumPy's parser of headers, which reads them as Python.
DAMAGED_NPZ = (
    OSError, ValueError, KeyError, EOFError, NotImplementedError, MemoryError, RuntimeError, SyntaxError,
    TypeError, IndexError, tokenize.TokenError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip


class UserError(Exception):
    """What is wrong, where, and what to do; `code` becomes the exit status."""

    code = 1


class ConfigError(UserError):
    """A wrong command line or config: exit status 2."""

    code = 2


# How the system and libraries say that a process gets no more memory, threads or open files.
_LACKS = (
    "can't allocate memory", "cannot allocate memory", "not enough memory", "unable to allocate", "bad_alloc",
    "no memory to", "can't start new thread", "resource temporarily unavailable", "too many open files",
)  # fmt: skip
# What a disk says without naming a file.
_OF_DISKS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)


def explained(error: Exception) -> UserError:
    """What no command expected, as a sentence: what the machine lacks or refuses and where, a rank that is gone,
    and all else by its kind."""
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    if isinstance(error, MemoryError) or any(lack in str(error).lower() for lack in _LACKS):
        where = f"{error.filename}: " if isinstance(error, OSError) and error.filename else ""
        return UserError(
            f"{where}this process gets no more memory, threads or open files: {reason}\n"
            "See `ulimit -a` and what the job asked for; fewer data.workers and a smaller "
            "training.max_micro_batch need less. The same command resumes."
        )
    if isinstance(error, OSError) and (error.filename is not None or error.errno in _OF_DISKS):
        where = "the disk" if error.filename is None else error.filename
        return UserError(
            f"{where}: cannot be read or written: {error.strerror or error}\n"
            "Put that right, or name a place that is there, has room and that this user may use, "
            "and run the same command again."
        )
    # By its name: torch, which has it, takes seconds to import.
    if any(kind.__name__ == "DistError" for kind in type(error).__mro__):
        return UserError(
            f"another rank is gone: {reason}\n"
            "Its own message says why. The same command resumes from the last checkpoint."
        )
    kind = type(error).__name__
    return UserError(f"unexpected {kind}: {error}\nAdd --debug for the traceback.")


class FieldError(ValueError):
    """A value that its config section refuses; the loader adds file and line."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(f"{key}: {message}")
        self.key = key
        self.message = message


def check_field(condition: bool, key: str, message: str) -> None:
    """Raise a FieldError for `key` unless the condition holds."""
    if not condition:
        raise FieldError(key, message)
