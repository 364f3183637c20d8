"""Security settings as people and programs read them."""

from __future__ import annotations

import json

from memvm.machine.settings import KINDS, Behaviour, Change
from memvm.manager.configuration import Config
from memvm.report.table import table


def config_text(config: Config) -> str:
    """A line a setting, and what was changed."""
    rows = [[s.name, s.value, s.at_launch, s.behaviour] for s in config.settings]
    text = table(("SETTING", "VALUE", "AT LAUNCH", "AT A CHANGE"), rows)
    if config.changes:
        text += f"\n\nchanges: {config.changes:,}, register {config.register[:32]}…"
        text += "".join(f"\n  {entry}" for entry in config.log)
    return text


def change_text(guest: str, name: str, change: Change) -> str:
    """What a change of a setting has done."""
    if change.value == change.before:
        return f"{name} was {change.value} already"
    done = {
        Behaviour.REVOKE: "the guest's tokens were revoked first, and its keys wiped",
        Behaviour.REATTEST: "the guest stands still until it has a new token\n"
        f"  try: memvm attest {guest} --verifier URL",
    }
    what = done.get(change.behaviour, "the change is in its run-time register")
    return f"{name} is {change.value} now, and was {change.before}: {what}"


def kinds_text() -> str:
    """All settings that there are."""
    rows = [[name, _values(name), kind.strict, kind.meaning] for name, kind in KINDS.items()]
    return table(("SETTING", "VALUES, THE DEFAULT FIRST", "LOCKED", "MEANING"), rows)


def kinds_json() -> str:
    """The same for programs."""
    return json.dumps({name: kind._asdict() | {"parse": kind.parse is not None} for name, kind in KINDS.items()})


def _values(name: str) -> str:
    kind = next(kind for known, kind in KINDS.items() if known == name)
    others = [choice for choice in kind.choices if choice != kind.default]
    free = {"time-limit": ["a time"], "ram-limit": ["a size"], "hypercalls": ["names"]}.get(name, [])
    return ", ".join([kind.default, *others, *free])
