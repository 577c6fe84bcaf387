"""The view store: who may write a slot, and where (design section 5.1).

One record a slot, changed only by compare-and-swap on the whole record. Two kinds with the same
behaviour: ``SqliteViewStore`` in the controller (the default) and ``RedisViewStore``.

A store has an *identity*, a random id that is made together with it. Whoever remembers it notices
when a store has been lost and an empty one answers in its place. An older copy of the same store
is noticed by the replicas, which remember the newest epoch that they promised.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Protocol

from im_actors.core.model import SLOTS_MAX, Member, View, ViewState, view_of
from im_actors.errors import (
    BadRequest,
    CorruptData,
    InvariantBroken,
    NewerFormat,
    RolledBack,
    SetupError,
    TooLarge,
)

FORMAT_VERSION = 1
VIEW_BYTES_MAX = 8192
EPOCH_MAX = (1 << 63) - 1
TIMEOUT_S = 2.0
"""How long one call to a store that is not on this machine may take, connecting included."""
FILE = "views.db"


class ViewStore(Protocol):
    """What both kinds promise. Views are never deleted.

    Every method raises ShuttingDown after ``close``, CorruptData or NewerFormat when what is stored
    cannot be read, and RolledBack when the store is not the one that was opened any more.
    """

    @property
    def identity(self) -> str:
        """The random id that was made together with the store."""
        ...

    async def read(self, slot: int) -> View | None:
        """The slot's view; None: it has none yet. NotReachable when that cannot be told."""
        ...

    async def read_all(self) -> dict[int, View]:
        """All views, as of one moment. NotReachable when that cannot be told."""
        ...

    async def create(self, view: View) -> View:
        """Put the first view of a slot; returns what the store holds now, which is another one
        when the slot had a view already. Errors as for ``swap``."""
        ...

    async def swap(self, old: View, new: View) -> View:
        """Put ``new`` if the store holds exactly ``old``; returns what it holds now, on disk.

        ``new`` was put, by this call or an earlier one, if that is what comes back. Unknown: it may
        have been put, or may still be while the store holds ``old``; read, and swap the same
        again. DiskFailed leaves it open too, until the store is opened again. BadRequest and
        InvariantBroken refuse the call before the store is asked.
        """
        ...

    async def close(self) -> None:
        """Wait for what is under way and let go of the store. May be called twice."""
        ...


async def open_view_store(
    url: str,
    data_dir: Path,
    cluster: str,
    expected_identity: str | None = None,
    *,
    timeout_s: float = TIMEOUT_S,
    allow_unsafe: bool = False,
) -> ViewStore:
    """Open the store that ``url`` names: "" or "sqlite" for a file in ``data_dir``, or
    ``redis://…``, ``rediss://…``.

    A store that does not exist yet is made if ``expected_identity`` is None. Raises RolledBack when
    it is not the expected one, SetupError (wrong URL, password or Redis settings), NotReachable,
    WrongDirectory (in use, another cluster's), CorruptData, NewerFormat or DiskFailed.
    """
    if url in ("", "sqlite"):
        from im_actors.server.views_sqlite import SqliteViewStore

        file = SqliteViewStore(data_dir / FILE, cluster)
        await file.open(expected_identity)
        return file
    if url.partition("://")[0] not in ("redis", "rediss"):
        raise SetupError("the view store must be 'sqlite', redis://HOST:PORT or rediss://HOST:PORT")
    try:
        from im_actors.server.views_redis import RedisViewStore
    except ImportError as error:
        raise SetupError(
            f"a view store in Redis needs the redis package ({error}): "
            "pip install 'im-actors[server]'"
        ) from error
    remote = RedisViewStore(url, cluster, timeout_s, allow_unsafe=allow_unsafe)
    await remote.open(expected_identity)
    return remote


# -- what is refused before a store is asked -------------------------------------------------------


def check_slot(slot: object) -> int:
    """``slot`` if it may number one; otherwise BadRequest."""
    if type(slot) is int and 0 <= slot < SLOTS_MAX:
        return slot
    raise BadRequest(f"slot must be an integer from 0 to {SLOTS_MAX - 1}, not {slot!r}")


def check_view(view: View) -> View:
    """``view`` if a store may hold it; otherwise BadRequest or TooLarge says why."""
    check_slot(view.slot)
    if type(view.epoch) is not int or not 0 <= view.epoch <= EPOCH_MAX:
        raise BadRequest(f"epoch must be an integer from 0 to {EPOCH_MAX}, not {view.epoch!r}")
    if type(view.state) not in (int, ViewState) or view.state not in tuple(ViewState):
        raise BadRequest(f"state must be a ViewState, not {view.state!r}")
    if not isinstance(view.owner, str):
        raise BadRequest(f"owner must be a string, not {view.owner!r}")
    if not isinstance(view.members, tuple) or not all(map(_is_member, view.members)):
        raise BadRequest(f"members must be a tuple of (replica, disk), not {view.members!r}")
    try:
        size = len(encode_view(view))
    except UnicodeEncodeError:
        raise BadRequest("a name in the view holds a lone surrogate") from None
    if size > VIEW_BYTES_MAX:
        raise TooLarge(f"a view of {size} bytes, the limit is {VIEW_BYTES_MAX}")
    return view


def _is_member(member: object) -> bool:
    return (
        isinstance(member, tuple)
        and len(member) == len(Member._fields)
        and all(isinstance(name, str) for name in member)
    )


def check_swap(old: View, new: View) -> None:
    """Refuse a change that the protocol never makes.

    An epoch knows two records, RECOVERING and then ACTIVE under the same owner. So no record comes
    back once it was replaced, and comparing bytes is enough: a late swap cannot find its ``old``
    again.
    """
    check_view(old)
    check_view(new)
    if new.slot != old.slot:
        raise BadRequest(f"a swap from slot {old.slot} to slot {new.slot}")
    if new.epoch < old.epoch:
        raise InvariantBroken(f"I8: slot {old.slot}: epoch {old.epoch} would become {new.epoch}")
    if new.epoch == old.epoch and new != old:
        if new.owner != old.owner:
            raise InvariantBroken(f"I2: slot {old.slot}: epoch {old.epoch} would get two owners")
        if old.state == ViewState.ACTIVE:
            raise InvariantBroken(
                f"I8: slot {old.slot}: the ACTIVE view of epoch {old.epoch} would change"
            )


# -- the form in which both kinds keep a record ----------------------------------------------------


def encode_view(view: View) -> bytes:
    """The one byte form of a view: equal bytes if and only if equal views."""
    members = [list(member) for member in view.members]
    return pack([view.slot, view.epoch, int(view.state), view.owner, members])


def decode_view(slot: int, data: object, where: str) -> View:
    """The view of ``slot`` from its byte form; CorruptData or NewerFormat name ``where``."""
    fields = unpack(data, where)
    try:
        view = check_view(view_of(fields))
    except (ValueError, TypeError, BadRequest, TooLarge) as error:
        raise CorruptData(f"{where} is not a view: {error}") from error
    if view.slot != slot:
        raise CorruptData(f"{where} is the view of slot {view.slot}")
    return view


def pack(fields: list[Any]) -> bytes:
    """Canonical JSON: the format version, the fields, a checksum of both. An operator can read it,
    and a changed bit is noticed: neither SQLite nor Redis has a checksum on its contents."""
    return _sealed([FORMAT_VERSION, *fields])


def unpack(data: object, where: str) -> list[Any]:
    """The fields that ``pack`` was given."""
    fields = _parsed(data)
    # The checksum is the last field in every format, so damage never looks like a newer version.
    if not fields:
        raise CorruptData(f"{where} is damaged: its checksum or its form is wrong")
    if type(fields[0]) is not int or fields[0] > FORMAT_VERSION:
        raise NewerFormat(
            f"{where} has format {fields[0]}, this version of im_actors reads up to "
            f"{FORMAT_VERSION}; install a newer one"
        )
    return fields[1:-1]


def _parsed(data: object) -> list[Any]:
    """The fields with version and checksum; [] when the bytes are not what was written."""
    if not isinstance(data, bytes) or len(data) > VIEW_BYTES_MAX:
        return []
    try:
        fields = json.loads(data)
        intact = isinstance(fields, list) and len(fields) > 1 and _sealed(fields[:-1]) == data
    except (ValueError, RecursionError):
        return []
    return fields if intact else []


def _sealed(fields: list[Any]) -> bytes:
    checksum = hashlib.blake2b(_json(fields), digest_size=8).hexdigest()
    return _json([*fields, checksum])


def _json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def store_lost(where: str, cluster: str, expected: str, found: str | None) -> RolledBack:
    """What to raise when another store, or an empty one, answers in the place of the one known."""
    what = f"is another one ({found})" if found else "is empty"
    return RolledBack(
        f"the view store of cluster {cluster!r} at {where} {what}, although store {expected} is "
        "expected: it was wiped, restarted without its data, or the address is wrong. Bring its "
        "data back, or rebuild it with im-actors repair; the replicas keep every message meanwhile"
    )


def view_lost(where: str, slot: int) -> RolledBack:
    """What to raise when a slot that had a view has none: views are never deleted."""
    return RolledBack(
        f"the view store at {where} has no view of slot {slot}, which had one: the store was "
        "rolled back. Bring its data back, or rebuild it with im-actors repair; the replicas keep "
        "every message meanwhile"
    )
