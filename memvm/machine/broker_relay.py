"""The way to a key broker, as guests need it; memvm.attest.relay.HttpRelay is one."""

from __future__ import annotations

from typing import Protocol


class BrokerRelay(Protocol):
    """Carries what a guest says to a broker, and back; it can neither read nor change what matters of that."""

    def challenge(self, disk: str) -> tuple[bytes, str]:
        """Begin an exchange about a disk, by its UUID: the broker's nonce, and its identity. Raises MemvmError."""

    def key(self, disk: str, nonce: bytes, token: bytes) -> tuple[bytes, bytes]:
        """End it: the disk's key, sealed for the guest, and the broker's signature of that. Raises MemvmError."""
