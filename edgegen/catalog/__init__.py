"""Find, read and check `targets/` and `profiles/`: what a runtime takes, and what a device is.

A name is looked up in the user's folder first, so that a file of one's own overrides a shipped one; a path is
taken as it is. Reading checks more than types: a budget of zero or a name that is not the file's is refused,
with the file, the key and what to do.
"""

from __future__ import annotations

from edgegen.catalog.learned import forget_learned, learned_notes, unlearned
from edgegen.catalog.load import list_profiles, list_targets, load_profile, load_target, save_user_profile
from edgegen.catalog.locate import user_folder
from edgegen.catalog.machine import THIS_MACHINE, is_this_machine
from edgegen.catalog.schema import schema_of

__all__ = [
    "THIS_MACHINE",
    "forget_learned",
    "is_this_machine",
    "learned_notes",
    "list_profiles",
    "list_targets",
    "load_profile",
    "load_target",
    "save_user_profile",
    "schema_of",
    "unlearned",
    "user_folder",
]
