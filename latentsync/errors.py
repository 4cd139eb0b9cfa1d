"""The one error that a person, not a programmer, is meant to read."""


class UserError(ValueError):
    """What was got, what was wanted, what to do: one sentence. Doors print it and exit with code 2."""
