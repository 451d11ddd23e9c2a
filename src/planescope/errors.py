"""Everything that a user can cause to go wrong, by what they can do about it.

A message is one sentence: what is wrong, where, and what to do. The command line prints it and ends
with `status`: 2 for wrong usage or input, 1 for a run that failed.
"""


class PlanescopeError(Exception):
    """Base of all errors that planescope raises on purpose."""

    status = 2


class UsageError(PlanescopeError):
    """An option or argument that cannot be; give another."""


class CheckpointError(PlanescopeError):
    """A file that is missing, damaged or not what it claims; get it again or give another."""


class NoLayersError(PlanescopeError):
    """Nothing to measure with these options; choose other kinds or names."""


class OutputError(PlanescopeError):
    """A result that cannot be written; give another place."""


class MissingDependencyError(PlanescopeError):
    """An optional package is not installed; the message says which to install."""


class RunError(PlanescopeError):
    """A training run that failed; what it had saved is kept."""

    status = 1


class StoppedError(RunError):
    """A training run that was asked to stop, as by Ctrl-C; it can be resumed."""

    status = 130
