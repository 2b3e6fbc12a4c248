"""Every error that Commonweal raises on purpose.

::

    CommonwealError
    ├── PeerError            somebody else's bytes are bad: reject them, keep running
    │   ├── MalformedError   not the one accepted encoding, a closed schema broken, a bound exceeded
    │   ├── SignatureError   a signature, key or threshold does not hold
    │   ├── LogError         an inclusion or consistency proof, a gap, a fork, a rollback
    │   ├── RuleError        well-formed and signed, but the compact does not allow it now
    │   │   └── ChainConflictError   not the next entry in its author's chain; sign for the next place
    │   └── BlobError        a blob's bytes are not what its name or its spec says
    └── LocalError           our own side is wrong: stop before anything is signed
        ├── ConfigError      a configuration file or an argument
        ├── StorageError     disk, lock database, key files; a full disk
        ├── UnavailableError another daemon does not answer; worth another try
        └── BaseModelError   the base model cannot be had, or its digest differs

A message reads ``thing: wanted X, got Y`` and says how to fix it where that is known. Anything else that escapes is
a bug and crashes loudly.
"""


class CommonwealError(Exception):
    """The root: catch this at a border, never deeper."""


class PeerError(CommonwealError):
    """Somebody else's bytes are bad."""


class MalformedError(PeerError):
    """Not the one accepted encoding of a value, or a bound is exceeded."""


class SignatureError(PeerError):
    """A signature, key or threshold does not hold."""


class LogError(PeerError):
    """A log contradicts itself or what was seen of it before."""


class RuleError(PeerError):
    """The compact does not allow this entry in this state."""


class ChainConflictError(RuleError):
    """An entry is not the next one in its author's chain: its author may sign it for the next place."""


class BlobError(PeerError):
    """A blob's bytes are not what its name or its spec says."""


class LocalError(CommonwealError):
    """Our own side is wrong."""


class ConfigError(LocalError):
    """A configuration file or an argument is wrong."""


class StorageError(LocalError):
    """Our disk, lock database or key files are wrong."""


class UnavailableError(LocalError):
    """Another daemon does not answer; the same call may succeed later."""


class BaseModelError(LocalError):
    """The base model cannot be had, or is not the one that the compact names."""
