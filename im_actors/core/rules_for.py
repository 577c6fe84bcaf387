"""The rule of each kind of session: the one door for all that is new (``core.rules``)."""

from __future__ import annotations

from im_actors.core.batch_rules import decide_batch, decide_listing
from im_actors.core.group_rules import decide_group
from im_actors.core.lookup import Ask, Lookup
from im_actors.core.mailbox import decide_mailbox
from im_actors.core.model import EventKind
from im_actors.core.names import SessionKind, session_kind, session_name, users_of
from im_actors.core.notes import decide_cursor, decide_note
from im_actors.core.operations import read_operation
from im_actors.core.overlays import decide_overlay
from im_actors.core.reads import decide_reads
from im_actors.core.rule_settings import RuleSettings
from im_actors.core.rules import SERVER, Accept, Decision, Known, Nothing, Refuse, Request
from im_actors.errors import Forbidden, ImError

DEFAULT_SETTINGS = RuleSettings()

_NOTICE, _MESSAGE = SessionKind.NOTICE, int(EventKind.MESSAGE)
_new = tuple.__new__
_TALK = (EventKind.MESSAGE, EventKind.RECALL, EventKind.EDIT)
KINDS = {
    SessionKind.OPEN: _TALK,
    SessionKind.DIRECT: _TALK,
    SessionKind.NOTICE: _TALK,
    SessionKind.GROUP: (*_TALK, EventKind.GROUP),
    SessionKind.MAILBOX: (EventKind.MAILBOX, EventKind.NOTE),
    SessionKind.SLOT: (EventKind.NOTE,),
    SessionKind.BATCH: (EventKind.BATCH, EventKind.NOTE),
    SessionKind.READS: (EventKind.NOTE,),
}
"""The kinds of events that a session takes, besides VOID."""


def decide(known: Known, request: Request, settings: RuleSettings = DEFAULT_SETTINGS) -> Decision:
    """What becomes of a new send. What is accepted has to get the seq ``known.last_seq`` + 1: the
    rows in it name it."""
    if request.kind == EventKind.VOID:
        return Accept(request.kind, request.body)
    kind = session_kind(known.session)
    try:
        if kind is _NOTICE and request.kind == _MESSAGE:
            # First, and short: a batch sends one to each of its recipients.
            _check_notice(known.session, request.user, settings)
            return _new(Accept, (request.kind, request.body))
        if request.kind not in KINDS[kind]:
            raise Forbidden(_misplaced(known.session, kind, request.kind))
        return _decided(kind, Lookup(known), request, settings)
    except Ask as ask:
        return ask.needs
    except ImError as error:
        return Refuse(error)


def _misplaced(session: str, kind: SessionKind, event_kind: int) -> str:
    names = " or ".join(taken.name for taken in KINDS[kind]) or "nothing yet"
    return f"{session!r} takes {names}, not events of kind {event_kind}"


def _decided(
    kind: SessionKind, lookup: Lookup, request: Request, settings: RuleSettings
) -> Accept | Nothing:
    match kind:
        case SessionKind.GROUP:
            return decide_group(lookup, request, settings)
        case SessionKind.MAILBOX if request.kind == EventKind.NOTE:
            _check_server(lookup.session, request)
            return decide_note(lookup, request)
        case SessionKind.MAILBOX:
            if request.device == SERVER or request.user != session_name(lookup.session):
                raise Forbidden(f"{lookup.session} is another user's: change your own mailbox")
            return decide_mailbox(lookup, request, settings)
        case SessionKind.SLOT:
            _check_server(lookup.session, request)
            what, args = read_operation(request.kind, request.body)
            if what == "batch":
                return decide_listing(lookup, request, args)
            return decide_cursor(lookup, request)
        case SessionKind.READS:
            _check_server(lookup.session, request)
            return decide_reads(lookup, request)
        case SessionKind.BATCH:
            return decide_batch(lookup, request, settings)
        case SessionKind.DIRECT:
            if request.user not in users_of(lookup.session):
                raise Forbidden(
                    f"{request.user} is not one of the two of {lookup.session}: "
                    "write to a conversation of your own"
                )
        case SessionKind.NOTICE:
            _check_notice(lookup.session, request.user, settings)
    if request.kind == EventKind.MESSAGE:
        return Accept(request.kind, request.body)
    return decide_overlay(lookup, request, settings)


def _check_server(session: str, request: Request) -> None:
    if request.device != SERVER:
        raise Forbidden(f"only servers write notes; {session!r} is not for clients to write to")


def _check_notice(session: str, user: str, settings: RuleSettings) -> None:
    if user in settings.services:
        return
    channel = session_name(session).partition("/")[0]
    if channel == "service" and user in users_of(session):
        return
    raise Forbidden(
        f"{user} may not send on {session}: notices come from services, and a user writes to "
        "his own channel service only"
    )
