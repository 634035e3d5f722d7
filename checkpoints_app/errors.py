from __future__ import annotations


class CheckpointError(Exception):
    """The checkpoint store could not do what was asked."""


class CheckpointNotFound(CheckpointError):
    """No such checkpoint. It may have expired: choose another one of the same run."""


class CheckpointCorrupt(CheckpointError):
    """Stored bytes are missing, damaged, or not in a format that this version reads."""


class CheckpointConflict(CheckpointError):
    """Another writer added a checkpoint to the run meanwhile. Reload the run and try again."""


class UnknownType(CheckpointError):
    """A type that is not registered with the codec, at save or at load."""


class UnstorableValue(CheckpointError):
    """A value that has no exact JSON form: NaN, infinity, or nesting without end."""
