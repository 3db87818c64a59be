"""Every error this package raises on purpose.

TriskelError
├── JobError         the job cannot run as written (exit code 2)
├── DataError        a file, column, row or asset is not what the job says (exit code 2)
├── ModelError       a model, its blocks or its adapter do not fit the job (exit code 2)
├── PluginError      a mode of another package is not here, or cannot be loaded (exit code 2)
├── MessageError     bytes or sections from a peer are not what they claim
│   └── LimitError   a peer asked for more than the job allows
├── CodecError       a tensor cannot travel under the chosen codec
├── TrainingError    numbers stopped being numbers (client, round and step named)
├── MeterError       a cost could not be counted, so the run stops rather than report a wrong one
├── RoundError       a round ended without a usable result
├── CheckpointError  a saved state is missing, damaged or belongs to another job
└── FederationError  a federation cannot be made, reached, or brought to the end of a job
"""


class TriskelError(Exception):
    """Base of every error raised on purpose; its text is one sentence a user can act on."""

    exit_code = 1


class JobError(TriskelError):
    """The job cannot run as written."""

    exit_code = 2


class DataError(TriskelError):
    """A file, column, row or asset is not what the job says."""

    exit_code = 2


class ModelError(TriskelError):
    """A model, its blocks or its adapter do not fit the job."""

    exit_code = 2


class PluginError(TriskelError):
    """A mode, task, codec or aggregate of another package is not here, or cannot be loaded."""

    exit_code = 2


class MessageError(TriskelError):
    """Bytes or sections from a peer are not what they claim."""


class LimitError(MessageError):
    """A peer asked for more than the job allows."""


class CodecError(TriskelError):
    """A tensor cannot travel under the chosen codec."""


class TrainingError(TriskelError):
    """Numbers stopped being numbers while training."""


class MeterError(TriskelError):
    """A cost could not be counted."""


class RoundError(TriskelError):
    """A round ended without a usable result."""


class CheckpointError(TriskelError):
    """A saved state is missing, damaged or belongs to another job."""


class FederationError(TriskelError):
    """A federation cannot be made, reached, or brought to the end of a job."""
