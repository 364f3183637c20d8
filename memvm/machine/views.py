"""Makes a guest's file tree: what it is given of the host's, and /dev and /proc where it is not given others."""

from __future__ import annotations

from typing import TYPE_CHECKING

from memvm.files.devices import DEVICE_OF_DEV
from memvm.files.generated import GeneratedView
from memvm.files.given import given_tree
from memvm.files.tree import Tree
from memvm.machine.proc import PROC_DEVICE, dev_items, proc_items

if TYPE_CHECKING:
    from memvm.machine.guest import Guest


def make_tree(guest: Guest) -> Tree:
    """The tree of a guest by its views. Raises UsageError for one that is not there, HostError."""
    tree = given_tree(guest.views, guest.budget)
    given = {spec.point for spec in guest.views}
    if "/dev" not in given:
        tree.mount(b"/dev", GeneratedView(DEVICE_OF_DEV, dev_items(guest), guest.budget))
    if "/proc" not in given:
        tree.mount(b"/proc", GeneratedView(PROC_DEVICE, proc_items(guest), guest.budget))
    return tree
