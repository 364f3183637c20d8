"""Makes sealed guests, in their platforms' processes: a new one, or one from an encrypted checkpoint.

The order of events matters. Started by root, a platform opens, reads and imports what only root may, then becomes
another user, and only then makes the guest's process: so nothing that the guest could reach was ever root's.
"""

from __future__ import annotations

import os
import pkgutil
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

from memvm.attest.anchoring import Anchoring, anchor_restored, hold_tpm
from memvm.attest.checkpoint_keys import CheckpointKey, Claim, claims_of, is_vouched_for, launched_by
from memvm.attest.code import code_digest
from memvm.attest.evidence import describe
from memvm.attest.exchange import answer_field, exchange
from memvm.attest.places import platform_directory
from memvm.attest.platform import has_platform, hold_platform, load_certificates, load_device
from memvm.attest.rounds import signed
from memvm.attest.seals import is_vouched
from memvm.checkpoint.encrypted_files import EncryptedFile
from memvm.checkpoint.encrypted_records import EncryptedOutput
from memvm.checkpoint.encryption import EncryptedHeader
from memvm.checkpoint.file_bytes import OpenOutput
from memvm.checkpoint.format import FileHeader
from memvm.checkpoint.restore import RestoreOptions, restore
from memvm.disk.files import DiskFiles
from memvm.errors import AttestationError, ControlError, SaveError, SettingRefused
from memvm.linux.secret_memory import swap_warning
from memvm.machine.config import GuestConfig, RunOptions
from memvm.machine.launched import Launched
from memvm.machine.machine import Machine
from memvm.machine.program import read_program
from memvm.manager.attesting import attest_machine
from memvm.manager.protocol import Json
from memvm.sealed.chains import SealedParent, adopt, close, open_claimed, open_sealed_parent, require_lineage
from memvm.sealed.channel import close_all
from memvm.sealed.isolation import become_another_user
from memvm.sealed.platform import Ask, Load
from memvm.sealed.protocol import Kind

_NEEDED_LATER = ("memvm.machine", "memvm.memory", "memvm.files", "memvm.linux", "memvm.checkpoint")


class HowToRun(NamedTuple):
    """How the platform runs its guest."""

    options: Callable[[str], RunOptions]
    """By the guest's name."""
    open_disks: Callable[[Sequence[DiskFiles]], None]
    """Opens the guest's disks in their files: keys and anchors, only the user may read who started it. Raises
    MemvmError."""
    settle: Callable[[Machine], Machine]
    """Gives a guest that is made what comes from the command line. Raises MemvmError, and closes it then."""
    tpm: bool = False
    """Whether the guest is anchored in the platform's TPM: a new one by `settle`, a restored one before it is made."""


class Verification(NamedTuple):
    """Where this platform is attested before it restores a guest."""

    url: str = ""
    audience: str = ""
    authority: str = ""
    """A file with the certificates to believe for that, if not the system's."""


class Sealed:
    """A sealed guest in its platform's process: the machine, and the key of its checkpoints."""

    def __init__(self, machine: Machine, key: CheckpointKey | None) -> None:
        self.machine = machine
        self._key = key
        machine.settings.encrypts = True
        if warning := swap_warning():
            machine.warn(warning)

    @property
    def key(self) -> CheckpointKey:
        """Of its checkpoints. Raises SettingRefused if it can have none."""
        if self._key is None:
            raise SettingRefused(
                f"guest {self.machine.options.name} is sealed, and nobody keeps the key of its checkpoints",
                hint="launch it with --key-keeper FILE",
            )
        return self._key

    def open_parent(self, files: Sequence[EncryptedFile], name: str) -> SealedParent:
        """What the manager wants a checkpoint to be saved on top of, and to call so; the files stay open."""
        return open_sealed_parent(files, self.machine.guest.launched, self.key, name)

    def open_output(self, fd: int, publish: Callable[[], None], parent: SealedParent | None = None) -> OpenOutput:
        """What begins an encrypted checkpoint in `fd`, of which it has a descriptor of its own."""
        key, machine = self.key, self.machine
        link = None if parent is None else parent.outer

        def begin(header: FileHeader) -> EncryptedOutput:
            device = None
            if has_platform() and is_vouched(machine, load_certificates(platform_directory() / "root.pem")):
                device = load_device()
            outer = key.header(header.checkpoint_id, machine.guest.launched, device, link)

            def publish_if_still_so() -> None:
                # The header was written when the save began, and has to be that of the state, which was noted later.
                if claims_of(machine.guest.launched) != outer.claims:
                    raise SaveError("a setting of the guest was changed while it was saved", hint="save it again")
                publish()

            return EncryptedOutput(os.dup(fd), outer, key.key.view, publish_if_still_so)

        return begin

    def close(self) -> None:
        """End the guest, and forget the key; idempotent."""
        try:
            self.machine.close()
        finally:
            if self._key is not None:
                self._key.key.wipe()

    def attest(self, verifier: str, audience: str, kind: str, authority: str) -> Json:
        """Make a round with a verifier."""
        return attest_machine(self.machine, verifier, audience, kind, authority)


def launching(config: GuestConfig, run: HowToRun) -> Load:
    """What makes a new guest of a configuration."""

    def load(
        name: str, _parents: Sequence[Path], descriptors: Sequence[int], disks: Sequence[DiskFiles], _ask: Ask
    ) -> Sealed:
        if descriptors:
            close_all(descriptors)
            raise ControlError("a new guest comes from no file")
        key = CheckpointKey.new(config.key_keeper) if config.key_keeper else None
        if key is not None and not has_platform():
            raise AttestationError(
                "no platform here could vouch for the guest's checkpoints, so that nobody could have them restored",
                hint="memvm platform init",
            )
        program = read_program(config)
        try:
            run.open_disks(disks)
            _become_unprivileged(run)
        except BaseException:
            program.close()
            raise
        return Sealed(run.settle(Machine.launch_program(program, config, run.options(name))), key)

    return load


def restoring(path: Path, how: RestoreOptions, run: HowToRun, verification: Verification) -> Load:
    """What brings a guest back from an encrypted checkpoint; `path` is its name, and its descriptor comes later."""

    def load(
        name: str, parents: Sequence[Path], descriptors: Sequence[int], disks: Sequence[DiskFiles], ask: Ask
    ) -> Sealed:
        if not descriptors:
            raise ControlError("a guest that is restored comes from a file")
        files = adopt((path, *parents), descriptors)
        try:
            require_lineage(files)
            run.open_disks(disks)
            _become_unprivileged(run)
            instance = os.urandom(16)
            anchoring = Anchoring(platform_directory(), instance) if run.tpm else None
            key, vouched = _claim_key(files[0].header, instance, anchoring, verification, ask)
            chain = open_claimed(files, key)
        except BaseException:
            close(files)
            raise
        machine = restore(path, run.options(name), how, lambda done, total: None, chain)
        machine.guest.generation_id, machine.vouched = instance, vouched
        if anchoring is not None:
            try:
                anchor_restored(machine, anchoring)
            except BaseException:
                machine.close()
                raise
        return Sealed(run.settle(machine), key)

    return load


class _Claimed(NamedTuple):
    """The guest that is about to be restored, as evidence has it."""

    launched: Launched
    generation_id: bytes
    bound: bytes = b""


def _claim_key(
    header: EncryptedHeader, instance: bytes, anchoring: Anchoring | None, verification: Verification, ask: Ask
) -> tuple[CheckpointKey, bool]:
    """Have this platform attested, and the key released to it; and whether a platform vouches for the file.

    With `anchoring`, the guest's register is in the TPM from here on, as the file claims it, and the TPM says so.
    Raises AttestationError, HostError.
    """
    if not verification.url:
        raise AttestationError(
            "the key of an encrypted checkpoint is released to an attested platform only",
            hint="say who attests it with --verifier URL, and who keeps the key with --key-keeper URL",
        )
    device, claim = load_device(), Claim(header)
    vouched = is_vouched_for(header, load_certificates(platform_directory() / "root.pem"))
    claimed = _Claimed(launched_by(header), instance)
    claimed.launched.came_from(header.checkpoint_id, header.digest)

    def evidence(nonce: bytes, audience: str) -> bytes:
        code, version = code_digest(), device.security_version
        described = describe(claimed, claim.public, nonce, audience, code=code, version=version, vouched=vouched)
        if anchoring is not None:
            anchoring.begin(described.register)
        return signed(lambda: described, device, anchoring)

    answer = exchange(verification.url, verification.audience, verification.authority, evidence)

    def release(request: bytes) -> bytes:
        try:
            return bytes.fromhex(str(ask(Kind.RELEASE, {"request": request.hex()}).get("answer", "")))
        except ValueError:
            raise AttestationError("the key keeper's answer makes no sense") from None

    return claim.make(answer_field(answer, "result"), release), vouched


def _become_unprivileged(run: HowToRun) -> None:
    if os.geteuid() == 0:
        hold_platform()
        if run.tpm:
            hold_tpm()
        if has_platform():
            code_digest()  # which is remembered
        _import_what_is_needed_later()
    become_another_user()


def _import_what_is_needed_later() -> None:
    """memvm itself may be where only root can read."""
    import zstandard  # noqa: F401

    import memvm.attest.relay  # noqa: F401

    for package in _NEEDED_LATER:
        for module in pkgutil.iter_modules(import_module(package).__path__, f"{package}."):
            import_module(module.name)
            if module.ispkg:
                for part in pkgutil.iter_modules(import_module(module.name).__path__, f"{module.name}."):
                    import_module(part.name)
