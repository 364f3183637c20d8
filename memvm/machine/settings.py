"""The security settings of a guest: each has a value at launch, and a behaviour: what happens if somebody changes it.

Values and behaviours are measured at launch, and never changed but by `Settings.change`, the one place through which
every change goes. It carries out the behaviour before the change has any effect; whoever asked for the change has no
part in that, so it helps nobody to kill or stop him. Behaviours cannot be changed at all.
"""

import threading
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any, NamedTuple

from memvm.errors import SettingRefused, UsageError
from memvm.machine.register import Register
from memvm.units import parse_duration, parse_size


class Behaviour(StrEnum):
    """What happens if a setting is to be changed."""

    REFUSE = "refuse"
    """The change fails."""
    TERMINATE = "terminate"
    """The guest is ended, and its memory wiped."""
    REVOKE = "revoke"
    """The guest's tokens are put on the verifier's deny list and its keys are wiped; then the change is made."""
    REATTEST = "reattest"
    """The change is made, and the guest stands still until it has a new token."""
    RECORD = "record"
    """The change is made, and noted in the run-time register, as all others are."""


class Name(StrEnum):
    """The settings."""

    DEBUG = "debug"
    WX = "wx"
    CHECKPOINT = "checkpoint"
    CLONING = "cloning"
    FILES = "files"
    HYPERCALLS = "hypercalls"
    TIME_LIMIT = "time-limit"
    RAM_LIMIT = "ram-limit"
    OBSERVERS = "observers"


class Setting(NamedTuple):
    """A value, in its canonical form, and a behaviour."""

    value: str
    behaviour: Behaviour


class Change(NamedTuple):
    """What a request for a change has done; `value` is `before` if it was so already, and then nothing was done."""

    before: str
    value: str
    behaviour: Behaviour


class Kind(NamedTuple):
    """What values a setting can have."""

    meaning: str
    default: str
    """The value of a guest for which nothing else was said."""
    strict: str
    """The value of a locked guest."""
    choices: tuple[str, ...]
    """All values, or those beside what `parse` understands."""
    parse: Callable[[str], str] | None = None
    """The canonical form of another value. Raises UsageError or ValueError."""


def _seconds(text: str) -> str:
    return f"{parse_duration(text):.9f}".rstrip("0").rstrip(".") + "s"


def _bytes(text: str) -> str:
    return str(parse_size(text))


def _calls(text: str) -> str:
    names = sorted(filter(None, {name.strip() for name in text.split(",")}))
    from memvm.machine.hypercalls.families import TABLE  # few guests have such a list

    if unknown := set(names) - {entry.name for entry in TABLE.values()}:
        raise UsageError(f"no such system calls: {', '.join(sorted(unknown))}", hint="memvm doctor --calls")
    return ",".join(names)


_SWITCH = ("on", "off")
KINDS: Mapping[Name, Kind] = {
    Name.DEBUG: Kind(
        "memory, registers and its files may be read, changed and traced from outside", "on", "off", _SWITCH
    ),
    Name.WX: Kind("memory may be writable and executable at once", "on", "off", _SWITCH),
    Name.CHECKPOINT: Kind("it may be saved: not, only encrypted, or freely", "free", "no", ("no", "encrypted", "free")),
    Name.CLONING: Kind("a checkpoint of it may be restored as clones", "on", "off", _SWITCH),
    Name.FILES: Kind(
        "views of host files: none, --ro and --rw, or --pass as well",
        "write",
        "none",
        ("none", "read-only", "write"),
    ),
    Name.HYPERCALLS: Kind("the system calls that it may make: all, or a list", "all", "all", ("all",), _calls),
    Name.TIME_LIMIT: Kind("how long it may run", "none", "none", ("none",), _seconds),
    Name.RAM_LIMIT: Kind("how much of its RAM it may allocate", "all", "all", ("all",), _bytes),
    Name.OBSERVERS: Kind("others may watch which pages it writes and uses", "on", "off", _SWITCH),
}

NEEDS: Mapping[str, tuple[Name, str]] = {
    "read": (Name.DEBUG, "on"),
    "write": (Name.DEBUG, "on"),
    "registers": (Name.DEBUG, "on"),
    "trace": (Name.DEBUG, "on"),
    "files": (Name.DEBUG, "on"),
    "dirty": (Name.OBSERVERS, "on"),
    "sample": (Name.OBSERVERS, "on"),
    "checkpoint": (Name.CHECKPOINT, "free"),
    "suspend": (Name.CHECKPOINT, "free"),
}
"""What is asked of a manager, and the value that some setting must have for that."""


def default_settings() -> dict[Name, Setting]:
    """Everything is allowed, and changes are noted."""
    return {name: Setting(kind.default, Behaviour.RECORD) for name, kind in KINDS.items()}


def sealed_settings(*, saved: bool) -> dict[Name, Setting]:
    """What a sealed guest has instead of the defaults; `saved`: somebody keeps the key of its checkpoints."""
    values = {
        Name.DEBUG: "off",
        Name.OBSERVERS: "off",
        Name.CLONING: "off",
        Name.CHECKPOINT: "encrypted" if saved else "no",
    }
    return {name: Setting(value, Behaviour.REFUSE) for name, value in values.items()}


def require_sealed(settings: Mapping[Name, Setting], *, saved: bool) -> None:
    """Raises UsageError for settings that a sealed guest cannot have."""
    for name in (Name.DEBUG, Name.OBSERVERS, Name.CLONING):
        value, behaviour = settings[name]
        if value != "off" or behaviour not in (Behaviour.REFUSE, Behaviour.TERMINATE):
            raise UsageError(
                f"a sealed guest cannot have {name}={value}:{behaviour}", hint=f"{name}=off:refuse, or off:terminate"
            )
    checkpoint = settings[Name.CHECKPOINT].value
    if checkpoint == "free" or (checkpoint == "encrypted" and not saved):
        what = "encrypted, or not at all" if saved else "not at all without --key-keeper"
        raise UsageError(f"a sealed guest cannot have {Name.CHECKPOINT}={checkpoint}", hint=f"it is saved {what}")


def locked_settings() -> dict[Name, Setting]:
    """The strictest values, none of which can be changed."""
    return {name: Setting(kind.strict, Behaviour.REFUSE) for name, kind in KINDS.items()}


def parse_name(text: str) -> Name:
    """A setting by its name. Raises UsageError."""
    try:
        return Name(text)
    except ValueError:
        raise UsageError(f"there is no setting {text!r}", hint=f"one of {', '.join(Name)}") from None


def parse_value(name: Name, text: str) -> str:
    """The canonical form of a value. Raises UsageError."""
    kind = KINDS[name]
    if text in kind.choices:
        return text
    if kind.parse is None:
        raise UsageError(f"{name} cannot be {text!r}", hint=f"one of {', '.join(kind.choices)}")
    return kind.parse(text)


def parse_setting(text: str) -> tuple[Name, Setting]:
    """A setting from "debug=off:refuse"; without a behaviour, changes are refused. Raises UsageError."""
    name, equals, rest = text.partition("=")
    value, _, behaviour = rest.partition(":")
    if not equals:
        raise UsageError(f"not a setting: {text!r}", hint="write it like debug=off:refuse")
    known = parse_name(name)
    try:
        how = Behaviour(behaviour or "refuse")
    except ValueError:
        raise UsageError(f"there is no behaviour {behaviour!r}", hint=f"one of {', '.join(Behaviour)}") from None
    return known, Setting(parse_value(known, value), how)


class Settings:
    """The settings of one guest. Its methods may be called from any thread."""

    encrypts = False
    """Whether what is saved of the guest is encrypted: it is sealed."""

    def __init__(self, given: Mapping[Name, Setting], register: Register | None = None) -> None:
        """`given` are those at launch; values that the register's log says were changed are as they were last."""
        self.at_launch: Mapping[Name, Setting] = dict(given)
        self.register = register or Register()
        self.lock = threading.RLock()
        """Held, for an instant, when values and register change together, and by whoever must see both as one."""
        self._changing = threading.Lock()
        """Makes changes one thing after the other; those that stop the guest, or ask a verifier, take their time."""
        self.epoch = 0
        """Rises when a change begins, and when it is over: odd while one is being made. What was said of the guest in
        another epoch than now, or in an odd one, may be of values that do not count any more."""
        self.check: Callable[[Name, str], None] = lambda name, value: None
        """Raises GuestStateError if a guest in its state cannot have this value."""
        self.apply: Callable[[Name, str], None] = lambda name, value: None
        """Makes a value count."""
        self.terminate: Callable[[str], None] = lambda reason: None
        self.revoke: Callable[[str], None] = lambda reason: None
        """Has tokens denied and wipes keys. Raises if that cannot be done: then nothing is changed."""
        self.stop: Callable[[], None] = lambda: None
        """Stops the guest until it has a new token."""
        self.anchor: Callable[[bytes], None] = lambda register: None
        """Has the register's next value vouched for. Raises if that cannot be done: then nothing is changed."""
        self.changed: Callable[[], None] = lambda: None
        """Told after each change."""
        self._values = {name: setting.value for name, setting in given.items()}

    def value(self, name: Name) -> str:
        """The value now."""
        return self._values[name]

    @property
    def time_limit(self) -> float | None:
        """Seconds that the guest may run; None without a limit."""
        value = self._values[Name.TIME_LIMIT]
        return None if value == "none" else parse_duration(value)

    def now(self) -> dict[Name, Setting]:
        """All settings as they are now."""
        with self.lock:
            return {name: Setting(self._values[name], setting.behaviour) for name, setting in self.at_launch.items()}

    def restore(self, values: Mapping[Name, str]) -> None:
        """Take over the values of a checkpoint."""
        self._values.update(values)

    def to_fields(self, shown: int) -> dict[str, Any]:
        """All there is to tell of them, with so many entries of the register's log, the youngest."""
        with self.lock:
            now, register = self.now(), self.register
            return {
                "settings": [[name, now[name].value, self.at_launch[name].value, now[name].behaviour] for name in Name],
                "register": register.value.hex(),
                "changes": len(register.entries),
                "log": register.entries[-shown:],
            }

    def require(self, request: str) -> None:
        """Raises SettingRefused if the settings do not allow what is asked of the manager."""
        name, needed = NEEDS.get(request, (None, ""))
        if self.encrypts and name is Name.CHECKPOINT and self._values[name] == "encrypted":
            return
        if name is not None and self._values[name] != needed:
            only = ", and encrypted checkpoints cannot be made yet" if self._values[name] == "encrypted" else ""
            raise SettingRefused(
                f"{request!r} needs {name}={needed}, and this guest has {name}={self._values[name]}{only}",
                hint=f"`memvm config NAME set {name}={needed}` does what the guest was launched with: "
                f"{self.at_launch[name].behaviour}",
            )

    def change(self, name: Name, text: str) -> Change:
        """Change a setting, as its behaviour says.

        Raises SettingRefused if it may not be changed, or the guest was ended for it; UsageError for a value that the
        setting cannot have; and what `check`, `revoke` and `anchor` raise. Then it is as it was; but what `revoke` and
        `stop` have done stays done.
        """
        value = parse_value(name, text)
        with self._changing:
            before, behaviour = self._values[name], self.at_launch[name].behaviour
            if value == before:
                return Change(before, before, behaviour)
            if behaviour is Behaviour.REFUSE:
                raise SettingRefused(f"{name} is {before}, and was launched so that a change is refused")
            self.check(name, value)
            self.epoch += 1
            try:
                self._carry_out(name, before, value, behaviour)
            finally:
                self.epoch += 1
        self.changed()
        return Change(before, value, behaviour)

    def _carry_out(self, name: Name, before: str, value: str, behaviour: Behaviour) -> None:
        reason = f"{name} was to be changed from {before} to {value}"
        entry = self.register.entry("change", setting=name, before=before, after=value, behaviour=behaviour)
        if behaviour is Behaviour.REVOKE:
            self.revoke(reason)
        if behaviour is Behaviour.TERMINATE:
            self.terminate(reason)
            raise SettingRefused(f"{reason}: the guest was launched to be ended then, and has been")
        if behaviour is Behaviour.REATTEST:
            self.stop()
        self.anchor(self.register.after(entry))
        with self.lock:
            self.register.extend(entry)
            self._values[name] = value
        self.apply(name, value)
