"""The one error that a person, not a programmer, is meant to read."""

from collections.abc import Iterator
from contextlib import contextmanager


class UserError(Exception):
    """What was got, what was wanted, what to do: one sentence. Doors print it and exit with code 2."""

    # ComfyUI names a pack's modules by their paths and shows them in error reports, which people publish
    __module__ = "latentsync.errors"


class UnfinishedError(UserError):
    """Work that was begun and did not come to its end; what there is of it was kept. Doors exit with code 1."""

    __module__ = "latentsync.errors"


class NoFaceError(UserError):
    """The face that was asked for is nowhere in the clip."""

    __module__ = "latentsync.errors"


NO_MEMORY = (
    "The memory (RAM) ran out or is limited; close other programs, raise the limit, or take a smaller or shorter input."
)
_MEMORY_SIGNS = (
    "can't allocate memory",
    "cannot allocate memory",
    "insufficient memory",
    "bad_alloc",
    "bad allocation",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the computer's memory, or a limit on it, was too small; each library says so in its own way."""
    if isinstance(error, MemoryError):
        return True
    return not isinstance(error, UserError) and any(sign in str(error).lower() for sign in _MEMORY_SIGNS)


@contextmanager
def memory_told() -> Iterator[None]:
    """A want of memory as a UserError."""
    try:
        yield
    except (MemoryError, OSError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise UserError(NO_MEMORY) from error
        raise
