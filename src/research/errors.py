"""Every error a user can cause, with a message that says what was wrong, with what value, and what to do."""


class ConfigurationError(ValueError):
    """A setting that does not exist, has an impossible value, or does not fit the others."""


class CellMismatchError(ConfigurationError):
    """A result directory that was made by another configuration than the one about to use it."""


class ModelUnavailableError(ConfigurationError):
    """A base model that is neither on this machine nor reachable."""


class StaleWeightsError(RuntimeError):
    """A sampler that does not hold the weights the trainer holds."""


class SamplerError(RuntimeError):
    """A sampler that failed, hung, or answered with anything but success."""
