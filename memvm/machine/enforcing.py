"""What the security settings mean for a machine, and what their behaviours do to it: settings.py, enforced."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from memvm.errors import GuestStateError, SettingRefused
from memvm.machine.hypercalls.table import numbers_of
from memvm.machine.launched import Launched
from memvm.machine.settings import Behaviour, Name, Settings
from memvm.units import PAGE_SIZE, format_size

if TYPE_CHECKING:
    from memvm.files.specs import ViewSpec
    from memvm.machine.machine import Machine


def require_views(value: str, views: Iterable[ViewSpec]) -> None:
    """Raises SettingRefused if `value` of files does not allow a guest these views.

    A view whose changes stay in memory only reads what is the host's.
    """
    view = _too_much(value, views)
    if view is not None:
        needed = "write" if view.access == "pass" else "read-only"
        raise SettingRefused(
            f"--{view.access} {view.host}: the guest has {Name.FILES}={value}",
            hint=f"launch it with --setting {Name.FILES}={needed}",
        )


def note_views(settings: Settings, before: Iterable[ViewSpec], now: Iterable[ViewSpec]) -> None:
    """A restored guest gets views `now` in the places of those `before`: note it where it may do something else there.

    What was attested is what it could do at launch. So that it may write through is a change of the setting, also where
    its value allows that. Raises SettingRefused if it was launched so that a change is refused, or ends the guest.
    """
    behaviour = settings.at_launch[Name.FILES].behaviour
    for old, new in zip(before, now, strict=True):
        if old.access == new.access:
            continue
        if new.access == "pass" and behaviour in (Behaviour.REFUSE, Behaviour.TERMINATE):
            raise SettingRefused(
                f"--pass {new.host}: the guest had --{old.access} at {old.point}, and was launched with "
                f"{Name.FILES}={settings.at_launch[Name.FILES].value}:{behaviour}",
                hint=f"restore it with --{old.access}",
            )
        facts = {"before": f"{old.access} {old.point}", "after": f"{new.access} {new.point}"}
        with settings.lock:
            settings.register.extend(
                settings.register.entry("change", setting=Name.FILES, behaviour=behaviour, **facts)
            )


def _too_much(value: str, views: Iterable[ViewSpec]) -> ViewSpec | None:
    """A view that this value of files does not allow."""
    allowed = {"none": (), "read-only": ("ro", "rw"), "write": ("ro", "rw", "pass")}[value]
    return next((view for view in views if view.access not in allowed), None)


class Enforcement:
    """The settings of one machine's guest, enforced."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self.awaits_token = False
        """Whether the guest stands still until it has a new token."""
        self._held_in = 0
        """The epoch of the settings in which it was stopped for that."""
        self.wipe = False
        """Whether its memory has to be wiped when it has ended."""
        self.deny: Callable[[str], None] = lambda reason: None
        """Has the tokens denied that were issued for the guest. Raises AttestationError if that cannot be done."""

    def adopt(self, launched: Launched) -> None:
        """This is what the guest was launched as; its settings count from here on."""
        settings = launched.settings
        self._machine.guest.launched = launched
        for name in Name:
            self._apply(name, settings.value(name))
        settings.check, settings.apply = self._check, self._apply
        settings.terminate, settings.stop, settings.revoke = self._terminate, self._hold, self._revoke

    def _check(self, name: Name, value: str) -> None:
        machine, space = self._machine, self._machine.space
        if machine.is_ending:
            raise GuestStateError(f"guest {machine.options.name} has ended")
        if name is Name.WX and value == "off" and (region := space.writable_and_executable()) is not None:
            raise GuestStateError(f"the guest has memory that is writable and executable, at {region.start:#x}")
        if name is Name.FILES and (view := _too_much(value, machine.guest.views)) is not None:
            raise GuestStateError(f"the guest has been given {view.host}, with --{view.access}")
        if name is Name.RAM_LIMIT and value != "all" and space.allocated > int(value):
            raise GuestStateError(f"the guest has {format_size(space.allocated)} of its RAM allocated already")

    def _apply(self, name: Name, value: str) -> None:
        machine = self._machine
        if name is Name.HYPERCALLS:
            machine.guest.allowed_calls = None if value == "all" else numbers_of(value.split(","))
        elif name is Name.RAM_LIMIT:
            machine.space.limit = None if value == "all" else int(value)
        elif name is Name.OBSERVERS and value == "off":
            machine.stop_sampling()

    def _terminate(self, reason: str) -> None:
        """What it named first, before the change is answered; all of its memory when it is gone."""
        self.wipe = True
        try:
            self._wipe_secrets()
        finally:
            self._machine.kill(f"{reason}: it was launched to be ended then")

    def _revoke(self, reason: str) -> None:
        """Tokens first: as long as somebody may believe one, its guest can have its keys."""
        self.deny(reason)
        guest = self._machine.guest
        guest.token, guest.public_key, guest.bound = b"", ("", b""), b""
        self._wipe_secrets()

    def _wipe_secrets(self) -> None:
        secrets, ram = self._machine.guest.secrets, self._machine.ram
        for address, size in secrets:
            self._wipe(address, size)
        for address, size in secrets:
            ram.unpin(address, size)  # not before: two may share a page
        secrets.clear()

    def _wipe(self, address: int, size: int) -> None:
        """What the guest gave back since is wiped already."""
        machine, end = self._machine, address + size
        while address < end:
            piece = min(end, (address // PAGE_SIZE + 1) * PAGE_SIZE) - address
            with machine.lock:
                if machine.space.holds(address, piece):
                    machine.guest.mapped_last = None
                    machine.ram.write(address, bytes(piece))
            address += piece

    def _hold(self) -> None:
        self._held_in = self._machine.settings.epoch
        self.awaits_token = True
        try:
            self._machine.pause()
        except BaseException:
            self.awaits_token = False
            raise

    def require_token(self) -> None:
        """Raises SettingRefused if the guest must not go on without a new token."""
        if self.awaits_token:
            raise SettingRefused(
                f"guest {self._machine.options.name} stands still until it has a new token", hint="memvm attest NAME"
            )

    def token_came(self, epoch: int) -> None:
        """The guest has a token of what it was in this epoch of its settings: if it was stopped before, it goes on."""
        if self.awaits_token and epoch > self._held_in:
            self.awaits_token = False
            self._machine.resume()
