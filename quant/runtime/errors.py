"""The one error of loading and saving."""


class CheckpointError(ValueError):
    """A checkpoint cannot be read, does not fit the model, or cannot be written; says where and why."""
