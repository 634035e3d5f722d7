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


class InvalidMark(CheckpointError):
    """A name, note or tag that a checkpoint cannot have."""


class InvalidSearch(CheckpointError):
    """A filter, a text or a page to search for that has no meaning here."""


class BackendUnavailable(CheckpointError):
    """The place where chunks lie is not configured, does not answer, or takes no more."""


class StoreBusy(CheckpointError):
    """Saves under way kept a sweep waiting for too long. Sweep again later."""


class BundleRefused(CheckpointError):
    """A bundle that is damaged, made to harm, or not in a format that this version reads."""


class CheckpointReadOnly(CheckpointError):
    """A checkpoint from a bundle of unknown origin: it may be read and compared, not run."""
