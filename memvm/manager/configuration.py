"""A guest's security settings, as a manager tells of them: an answer of the control protocol, and its reading."""

from __future__ import annotations

from typing import Any, NamedTuple

from memvm.errors import ControlError
from memvm.machine.settings import Settings, parse_name
from memvm.manager.guest import ManagedGuest
from memvm.manager.protocol import Json, record_to_json
from memvm.manager.requests import text_of

_SHOWN = 100
"""Entries of the log that an answer has at most, the youngest."""


class ConfiguredSetting(NamedTuple):
    """One setting."""

    name: str
    value: str
    at_launch: str
    behaviour: str


class Config(NamedTuple):
    """The settings of a guest, and what became of them."""

    settings: tuple[ConfiguredSetting, ...]
    register: str
    """The run-time register, in hexadecimal."""
    changes: int
    """Entries of its log."""
    log: tuple[str, ...]
    """The youngest of them."""


def config(guest: ManagedGuest, _request: Json) -> Json:
    """Carry out a request for the settings."""
    return config_to_json(guest.settings)


def change_setting(guest: ManagedGuest, request: Json) -> Json:
    """Carry out a request for a change."""
    return record_to_json(guest.settings.change(parse_name(text_of(request, "name")), text_of(request, "value")))


def config_to_json(settings: Settings) -> dict[str, Any]:
    """As it travels."""
    return settings.to_fields(_SHOWN)


def config_from_json(fields: dict[str, Any]) -> Config:
    """The opposite. Raises ControlError."""
    try:
        settings = tuple(ConfiguredSetting(*map(str, setting)) for setting in fields["settings"])
        return Config(settings, str(fields["register"]), int(fields["changes"]), tuple(map(str, fields["log"])))
    except (KeyError, TypeError, ValueError):
        raise ControlError("the manager sent settings that make no sense") from None
