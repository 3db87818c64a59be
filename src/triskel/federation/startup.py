"""A kit's `startup` is replaced when its party is renewed; what it allows and keeps stays.

`startup` holds certificate and key; `local` and `triskel` are the party's own: its policy, its
audit log, its budget.
"""

import shutil
from pathlib import Path

from triskel.core.untrusted import data_of
from triskel.errors import FederationError, JobError
from triskel.federation.kits import Kit, kit_at
from triskel.federation.nodes import alive

NEW, BEFORE = "startup.new", "startup.before"


def swap(kit: Kit, fresh: Path) -> Kit:
    """Put the `startup` of a new kit into one that is there; return what it is now.

    Args:
        kit: The kit that stays.
        fresh: The folder of the new one, of which `startup` is taken.

    Raises:
        JobError: They are not of the same party, or not of the same authority.
        FederationError: The node runs.
    """
    made = kit_at(fresh)
    if made is None or (made.name, made.kind) != (kit.name, kit.kind):
        what = f"the kit of {made.name}" if made else "no kit"
        raise JobError(f"{kit.path} is the kit of {kit.name}, and what came is {what}")
    authorities = [data_of(one.path / "startup" / "rootCA.pem") for one in (kit, made)]
    if authorities[0] != authorities[1]:
        raise JobError(
            f"{kit.path} is of another authority than what came; a party that changes its "
            "federation starts with a folder of its own"
        )
    idle(kit)
    new, before, now = kit.path / NEW, kit.path / BEFORE, kit.path / "startup"
    for left in (new, before):  # of a renewal that was killed
        shutil.rmtree(left, ignore_errors=True)
    shutil.copytree(fresh / "startup", new)
    new.chmod(0o700)
    now.rename(before)
    new.rename(now)
    shutil.rmtree(before)
    found = kit_at(kit.path)
    if found is None:
        raise FederationError(f"{kit.path} is no kit any more; unpack what came in a new folder")
    return found


def idle(kit: Kit) -> None:
    """Refuse to change a node that runs.

    Raises:
        FederationError: It runs.
    """
    if kit.kind != "admin" and alive(kit) is not None:
        raise FederationError(
            f"{kit.name} runs; `triskel federation stop {kit.path}` first, and start it after"
        )
