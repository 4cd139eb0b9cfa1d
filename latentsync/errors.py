"""The one error that a person, not a programmer, is meant to read."""


class UserError(Exception):
    """What was got, what was wanted, what to do: one sentence. Doors print it and exit with code 2."""

    # ComfyUI names a pack's modules by their paths and shows them in error reports, which people publish
    __module__ = "latentsync.errors"
