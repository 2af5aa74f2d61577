"""What a person can be told about work that cannot go on."""


class ConversionError(Exception):
    """Work was refused or failed: the message says what was wrong, where, and what to do.

    No file stands half-written under the output's name when it is raised, and the input is untouched.
    """


class OutputBusyError(ConversionError):
    """Another process is writing the output."""


class CheckpointError(ConversionError, ValueError):
    """A checkpoint cannot be read, does not fit the model, or cannot be written; says where and why."""
