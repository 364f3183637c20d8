"""Security settings: their values, what happens at a change, and the register that notes it."""

from __future__ import annotations

import json
from hashlib import sha384
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memvm.errors import GuestStateError, SettingRefused, UsageError
from memvm.machine.launched import Launched
from memvm.machine.register import MAX_LOG, Register, extended
from memvm.machine.settings import (
    KINDS,
    NEEDS,
    Behaviour,
    Name,
    Setting,
    Settings,
    default_settings,
    locked_settings,
    parse_setting,
)


def settings_with(behaviour: Behaviour, value: str = "off") -> Settings:
    return Settings({**default_settings(), Name.DEBUG: Setting(value, behaviour)})


def test_defaults_and_strict_values_are_values() -> None:
    for name, kind in KINDS.items():
        assert parse_setting(f"{name}={kind.default}") == (name, Setting(kind.default, Behaviour.REFUSE))
        assert parse_setting(f"{name}={kind.strict}:record")[1].behaviour is Behaviour.RECORD
    assert all(setting.behaviour is Behaviour.REFUSE for setting in locked_settings().values())


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("time-limit=90", "90s"),
        ("time-limit=250ms", "0.25s"),
        ("ram-limit=64M", "67108864"),
        ("hypercalls=write,read", "read,write"),
    ],
)
def test_values_have_one_form(text: str, value: str) -> None:
    name, setting = parse_setting(text)
    assert setting.value == value
    assert parse_setting(f"{name}={value}")[1].value == value


@pytest.mark.parametrize("text", ["debug", "debug=maybe", "debug=on:sometimes", "bug=on", "hypercalls=no_such_call"])
def test_what_is_no_setting_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_setting(text)


def test_a_change_is_refused() -> None:
    settings = settings_with(Behaviour.REFUSE)
    with pytest.raises(SettingRefused, match="refused"):
        settings.change(Name.DEBUG, "on")
    assert settings.value(Name.DEBUG) == "off"
    assert settings.register.entries == []
    assert settings.change(Name.DEBUG, "off").value == "off"  # no change


@pytest.mark.parametrize("behaviour", [each for each in Behaviour if each is not Behaviour.REFUSE])
def test_a_behaviour_is_carried_out_before_the_change_counts(behaviour: Behaviour) -> None:
    settings = settings_with(behaviour)
    happened: list[str] = []

    def note(what: str) -> None:
        happened.append(f"{what}, {settings.value(Name.DEBUG)}")

    settings.terminate = lambda reason: note("terminate")
    settings.revoke = lambda reason: note("revoke")
    settings.stop = lambda: note("reattest")
    if behaviour is Behaviour.TERMINATE:
        with pytest.raises(SettingRefused, match="ended"):
            settings.change(Name.DEBUG, "on")
    else:
        settings.change(Name.DEBUG, "on")
        assert settings.value(Name.DEBUG) == "on"
        [entry] = settings.register.entries
        assert json.loads(entry)["after"] == "on"
    assert happened == ([] if behaviour is Behaviour.RECORD else [f"{behaviour}, off"])


def test_what_fails_changes_nothing() -> None:
    settings = settings_with(Behaviour.REVOKE)

    def unreachable(reason: str) -> None:
        raise GuestStateError("the verifier does not answer")

    settings.revoke = unreachable
    with pytest.raises(GuestStateError, match="does not answer"):
        settings.change(Name.DEBUG, "on")
    assert settings.value(Name.DEBUG) == "off"
    assert settings.register.value == bytes(48)


def test_attack_15_setting_changed_and_changed_back() -> None:
    settings = settings_with(Behaviour.RECORD)
    settings.change(Name.DEBUG, "on")
    settings.change(Name.DEBUG, "off")
    assert settings.now() == settings.at_launch
    assert len(settings.register.entries) == 2
    assert settings.register.value != bytes(48)


def test_requests_need_settings() -> None:
    locked = Settings(locked_settings())
    for request in NEEDS:
        with pytest.raises(SettingRefused, match="needs"):
            locked.require(request)
        Settings(default_settings()).require(request)
    locked.require("status")


@given(st.lists(st.sampled_from(["on", "off"]), max_size=20))
def test_the_register_is_a_pcr(values: list[str]) -> None:
    settings = settings_with(Behaviour.RECORD)
    for value in values:
        settings.change(Name.DEBUG, value)
    expected = bytes(48)
    for entry in settings.register.entries:
        expected = sha384(expected + sha384(entry.encode()).digest()).digest()
    assert settings.register.value == expected == Register(settings.register.entries).value


@pytest.fixture
def changed() -> Register:
    """The register of a guest with three changes."""
    settings = settings_with(Behaviour.RECORD)
    for state in ("on", "off", "on"):
        settings.change(Name.DEBUG, state)
    assert Register(settings.register.entries).value == settings.register.value
    return settings.register


def test_attack_18_log_truncated(changed: Register) -> None:
    log = changed.entries
    for other in (log[:-1], log[1:], [log[0], log[2]], []):
        assert Register(other).value != changed.value


def test_attack_18_log_reordered(changed: Register) -> None:
    log = changed.entries
    for other in ([log[1], log[0], log[2]], [log[0], log[2], log[1]]):
        assert Register(other).value != changed.value


def test_attack_18_log_extended(changed: Register) -> None:
    log = changed.entries
    for other in ([*log, log[0]], [log[0], *log], [*log, *log]):
        assert Register(other).value != changed.value


def test_a_full_log_allows_no_change() -> None:
    register = Register()
    while True:
        try:
            register.extend(register.entry("change", filler="x" * 8000))
        except GuestStateError:
            break
    assert sum(map(len, register.entries)) <= MAX_LOG
    assert Register(register.entries).value == register.value
    with pytest.raises(ValueError, match="more than"):
        Register([*register.entries, register.entries[0]])


@pytest.mark.parametrize("entry", ["", "[]", "{}", '{"event": 1}', '{"event": "x" }', "nonsense"])
def test_what_is_no_entry_is_refused(entry: str) -> None:
    with pytest.raises(ValueError, match=r".*"):
        Register([entry])
    assert extended(bytes(48), entry) != bytes(48)


def test_what_a_guest_was_launched_as_is_kept() -> None:
    launched = Launched({**locked_settings(), Name.DEBUG: Setting("off", Behaviour.RECORD)})
    launched.measure = lambda: bytes(range(48))
    launched.settings.change(Name.DEBUG, "on")
    launched.saves = 3
    launched.came_from(bytes(16), bytes(32))
    assert "disks" not in launched.to_fields(), "as in files of versions that did not say it"
    launched.disks = 2
    again = Launched.from_fields(json.loads(json.dumps(launched.to_fields())))
    assert again.to_fields() == launched.to_fields()
    assert again.disks == 2
    assert again.settings.value(Name.DEBUG) == "on"
    assert again.settings.register.value == launched.settings.register.value


@given(st.data())
def test_any_other_fields_are_refused(data: st.DataObject) -> None:
    launched = Launched()
    launched.disks = 1
    good = launched.to_fields()
    key = data.draw(st.sampled_from(sorted(good)))
    value: Any = data.draw(
        st.none() | st.text(max_size=3) | st.lists(st.integers(), min_size=1, max_size=2) | st.just({})
    )
    try:
        assert Launched.from_fields({**good, key: value}).to_fields()[key] == value
    except ValueError:
        return
