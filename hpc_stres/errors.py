"""Errors that a user can fix: one to three lines on stderr and an exit code, never a traceback."""


class UserError(Exception):
    """What is wrong, where, and what to do; `code` becomes the exit status."""

    code = 1


class ConfigError(UserError):
    """A wrong command line or config: exit status 2."""

    code = 2


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
