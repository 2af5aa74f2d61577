"""What a user can be told about a conversion that cannot go on."""


class ConversionError(Exception):
    """A conversion was refused or failed: the message says what was wrong, where, and what to do.

    No file stands half-written under the output's name when it is raised, and the input is untouched.
    """
