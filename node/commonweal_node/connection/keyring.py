"""This institution's signing key, and the one that is to follow it.

::

    keys/institution.pem        signs now
    keys/institution.next.pem   signs from its rotation on; made by `commonweal node rotate-key`

The next key takes the place of the present one in one step, and only once the log says that it is ours: a crash at any
point leaves the key that the log knows in one of the two files.
"""

import os
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from commonweal_node.home import NodeHome
from commonweal_protocols.base.errors import StorageError
from commonweal_protocols.base.files import sync_directory
from commonweal_protocols.base.keys import create_key_file, load_key_file


class KeyRing:
    """Both keys. Owned by the institution's thread."""

    def __init__(self, home: Path, passphrase: bytes | None) -> None:
        """Load the present key.

        Raises:
            StorageError: It is not there, readable by others, or under another passphrase.
        """
        self._home = NodeHome(home)
        self._passphrase = passphrase
        self._present = load_key_file(self._home.key, passphrase)

    @property
    def present(self) -> Ed25519PrivateKey:
        """The key that signs now."""
        return self._present

    def next(self) -> Ed25519PrivateKey | None:
        """The key that is to follow, if there is one.

        Raises:
            StorageError: The file is readable by others, or under another passphrase.
        """
        path = self._home.next_key
        return load_key_file(path, self._passphrase) if path.exists() else None

    def make_next(self) -> Ed25519PrivateKey:
        """Make the key that is to follow.

        Raises:
            StorageError: There is one already.
        """
        return create_key_file(self._home.next_key, self._passphrase)

    def promote(self) -> None:
        """Let the next key sign from now on; the present one is gone.

        Raises:
            StorageError: The files cannot be changed.
        """
        following = load_key_file(self._home.next_key, self._passphrase)
        try:
            os.replace(self._home.next_key, self._home.key)
            sync_directory(self._home.key.parent)
        except OSError as e:
            raise StorageError(f"{self._home.next_key}: the next key cannot take its place: {e.strerror}") from e
        self._present = following
