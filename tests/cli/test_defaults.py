"""Commands have the defaults of the verbs that they run."""

from importlib import import_module
from inspect import Parameter, signature

import pytest

import graphmod as gm
from graphmod.methods.deeparc import attack

VERBS = {
    "adapt.adapt": gm.adapt, "attack.attack": attack, "repair.repair": gm.repair, "rank.rank": gm.rank_blocks,
    "commands.compress": gm.compress, "reuse.reuse": gm.reengineer,
}  # fmt: skip


@pytest.mark.parametrize("command", VERBS)
def test_a_command_has_the_defaults_of_its_verb(command):
    module, _, name = command.partition(".")
    ours = signature(getattr(import_module(f"graphmod.cli.{module}"), name)).parameters
    theirs = signature(VERBS[command]).parameters
    shared = [one for one in ours if one in theirs and Parameter.empty not in (ours[one].default, theirs[one].default)]
    assert shared
    differ = {
        one: (ours[one].default, theirs[one].default) for one in shared if ours[one].default != theirs[one].default
    }
    assert not differ
