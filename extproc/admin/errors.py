"""What operators get wrong."""


class Invalid(Exception):  # noqa: N818 - of what was sent
    """What was sent cannot be used. The text says what, and how it should look."""
