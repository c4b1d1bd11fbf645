"""Errors that a user sees as one line, and the exit code each one ends a command with."""


class TerraFMError(Exception):
    """The run failed: exit code 1. The message says what was wrong, where, and what to do."""

    exit_code = 1


class UsageError(TerraFMError):
    """Wrong usage, configuration or input, found before any work was done: exit code 2."""

    exit_code = 2


class RayStartError(TerraFMError):
    """Ray, or processes of it, did not start in time, or at all: exit code 1.

    Nothing speaks against the command: given again, on a machine that is less busy, it may succeed.
    """


class PixelError(UsageError):
    """Pixels, or the names of bands, of which it cannot be told what they mean.

    Attributes:
        where: the file, place or product at fault.
        why: one line, what is wrong with it.
    """

    def __init__(self, where: str, why: str) -> None:
        super().__init__(f"{where}: {why}")
        self.where = where
        self.why = why

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return type(self), (self.where, self.why)


class UnreadableFileError(UsageError, OSError):
    """A file that is not opened, or not read to its end: exit code 2.

    It is no regular file, or larger than any of its kind. An `OSError` as well, so that whoever
    sets unreadable files of an archive aside does so with this one.
    """


class StoreFailedError(TerraFMError):
    """A store or disk failed for too long: exit code 1. Nothing is said about what lies there."""


class StoreRefusedError(UsageError):
    """A store or disk refused (credentials, bucket, room): exit code 2. As above."""


STORE_ERRORS = (StoreFailedError, StoreRefusedError)
