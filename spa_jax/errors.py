"""The errors of spa_jax that a caller may want to tell apart; every one of them is a ValueError."""


class SpaError(ValueError):
    """Base of all errors that spa_jax raises by a name of its own."""


class DataNotFoundError(SpaError):
    """A data set is not where it was looked for, or lies there in a form that cannot be read."""


class CheckpointError(SpaError):
    """A checkpoint cannot be written, is damaged, is not there, or belongs to another model."""


class ConfigError(SpaError):
    """A config has a misspelt or missing key or a wrong type, or is not the one a checkpoint was made with."""
