"""Groups: who may do what, and a long life of one against sets of members."""

from __future__ import annotations

import random
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from im_actors.core import groups as g
from im_actors.core.group_rules import RIGHTS
from im_actors.core.groups import Group, Membership, Role, may_read, readable
from im_actors.core.model import BODY_BYTES_MAX, EventKind, pack
from im_actors.core.overlays import edit_request, overlay_rank, recall_request
from im_actors.core.rule_settings import RuleSettings
from im_actors.core.rules import Refuse
from im_actors.errors import (
    BadRequest,
    CorruptData,
    Forbidden,
    ImError,
    NewerFormat,
    NotFound,
    TooLarge,
    TooLate,
)
from tests.core.deciding import Deciding

SESSION = "group:climbers"
GROUP, MESSAGE, RECALL, EDIT = (
    EventKind.GROUP,
    EventKind.MESSAGE,
    EventKind.RECALL,
    EventKind.EDIT,
)
PEOPLE = {
    "owen": Role.OWNER,
    "ada": Role.ADMIN,
    "abe": Role.ADMIN,
    "mia": Role.MEMBER,
    "max": Role.MEMBER,
    "sue": Role.STRANGER,
    "sam": Role.STRANGER,
}


def climbers(settings: RuleSettings | None = None) -> Deciding:
    """A group of PEOPLE; sam was in it once, sue never."""
    found = Deciding(SESSION, settings)
    act(found, "owen", g.create_request("climbers", ["ada", "abe", "mia", "max", "sam"]))
    act(found, "owen", g.role_request("ada", "admin"))
    act(found, "owen", g.role_request("abe", "admin"))
    act(found, "sam", g.leave_request())
    return found


def act(found: Deciding, user: str, body: bytes) -> None:
    assert found.send(f"{user}/pc", GROUP, body) is not None


def group_of(found: Deciding) -> Group:
    value = found.value(g.GROUP_KEY)
    assert value is not None
    return Group.from_bytes(value)


def member_of(found: Deciding, user: str) -> Membership | None:
    value = found.value(g.member_key(user))
    return Membership.from_bytes(value) if value is not None else None


def role_of(found: Deciding, user: str) -> Role:
    row = member_of(found, user)
    return row.role if row is not None else Role.STRANGER


def refused(found: Deciding, user: str, kind: int, body: bytes) -> type[ImError] | None:
    """The error, None when it is taken."""
    decision = found.decide(f"{user}/pc", kind, body)
    return type(decision.error) if isinstance(decision, Refuse) else None


def test_people_are_what_the_tests_say() -> None:
    found = climbers()
    assert {user: role_of(found, user) for user in PEOPLE} == PEOPLE
    assert group_of(found) == Group("climbers", "owen", found.now_ms, 5)


# ---- the rights, said here once more and independently

O, A, M, S = "owner", "admin", "member", "stranger"  # noqa: E741
NAMES = {Role.OWNER: O, Role.ADMIN: A, Role.MEMBER: M, Role.STRANGER: S}

BY_ACTOR = {
    "send": {O: None, A: None, M: None, S: Forbidden},
    "add": {O: None, A: None, M: Forbidden, S: Forbidden},
    "join": {O: None, A: None, M: None, S: Forbidden},
    "join, open to all": {O: None, A: None, M: None, S: None},
    "leave": {O: Forbidden, A: None, M: None, S: Forbidden},
    "mute all": {O: None, A: None, M: Forbidden, S: Forbidden},
    "send while all are muted": {O: None, A: None, M: Forbidden, S: Forbidden},
    "title": {O: None, A: None, M: Forbidden, S: Forbidden},
    "joining": {O: None, A: None, M: Forbidden, S: Forbidden},
    "dissolve": {O: None, A: Forbidden, M: Forbidden, S: Forbidden},
}
BODIES = {
    "add": g.add_request(["sue", "zoe"]),
    "join": g.join_request(),
    "join, open to all": g.join_request(),
    "leave": g.leave_request(),
    "mute all": g.mute_request(None, 1),
    "title": g.title_request("rocks"),
    "joining": g.joining_request(True),
    "dissolve": g.dissolve_request(),
}
# By what, who, and to whom.
ON_OTHERS = {
    "remove": {
        (O, A): None, (O, M): None, (O, S): None,
        (A, O): Forbidden, (A, A): Forbidden, (A, M): None, (A, S): None,
    },
    "role": {
        (O, A): None, (O, M): None, (O, S): NotFound,
    },
    "mute": {
        (O, A): None, (O, M): None, (O, S): NotFound,
        (A, O): Forbidden, (A, A): Forbidden, (A, M): None, (A, S): NotFound,
    },
}  # fmt: skip


@pytest.mark.parametrize(("what", "user"), list(product(BY_ACTOR, PEOPLE)))
def test_who_may(what: str, user: str) -> None:
    found = climbers()
    if what == "join, open to all":
        act(found, "owen", g.joining_request(True))
    if what == "send while all are muted":
        act(found, "owen", g.mute_request(None, found.now_ms + 1))
    expected = BY_ACTOR[what][NAMES[PEOPLE[user]]]
    kind = MESSAGE if "send" in what else GROUP
    assert refused(found, user, kind, BODIES.get(what, b"hello")) is expected


@pytest.mark.parametrize(("what", "user", "to"), list(product(ON_OTHERS, PEOPLE, PEOPLE)))
def test_who_may_to_whom(what: str, user: str, to: str) -> None:
    by, of = NAMES[PEOPLE[user]], NAMES[PEOPLE[to]]
    # To anybody: members and strangers have no such rights; nor has the owner over himself.
    expected = ON_OTHERS[what].get((by, of), Forbidden)
    bodies = {
        "remove": [g.remove_request([to])],
        "role": [g.role_request(to, role) for role in ("owner", "admin", "member")],
        "mute": [g.mute_request(to, until) for until in (0, 10)],
    }
    for body in bodies[what]:
        assert refused(climbers(), user, GROUP, body) is expected


def test_the_table_has_a_test_for_each_right() -> None:
    tested = {*BY_ACTOR, *ON_OTHERS, "recall what others wrote"} - {"join, open to all"}
    assert set(RIGHTS) == tested


@pytest.mark.parametrize(("user", "author"), list(product(PEOPLE, PEOPLE)))
def test_who_may_recall_and_edit_what_others_wrote(user: str, author: str) -> None:
    found = climbers()
    if PEOPLE[author] is Role.STRANGER:
        act(found, "owen", g.add_request([author]))
    seq = found.say(f"{author}/pc", "hello").seq
    if PEOPLE[author] is Role.STRANGER:
        act(found, author, g.leave_request())
    member, leads = PEOPLE[user] > Role.STRANGER, PEOPLE[user] > Role.MEMBER
    may_recall = member and (leads or user == author)
    for late in (False, True):
        found.now_ms += late * (found.settings.recall_ms + found.settings.edit_ms)
        error = refused(found, user, RECALL, recall_request(seq))
        late_error = TooLate if late and not leads else None
        assert error is (late_error if may_recall else Forbidden)
        error = refused(found, user, EDIT, edit_request(seq, b"x"))
        expected = (TooLate if late else None) if member and user == author else Forbidden
        assert error is expected


# ---- what the operations do


def test_nothing_is_done_in_a_group_that_is_not_there() -> None:
    found = Deciding(SESSION)
    for body in BODIES.values():
        assert type(found.refusal("owen/pc", GROUP, body)) is NotFound
    assert type(found.refusal("owen/pc", MESSAGE, b"hello")) is NotFound


def test_a_name_is_taken_once() -> None:
    found = climbers()
    assert type(found.refusal("eve/pc", GROUP, g.create_request("mine", []))) is Forbidden
    act(found, "owen", g.dissolve_request())
    assert type(found.refusal("eve/pc", GROUP, g.create_request("mine", []))) is Forbidden


def test_a_dissolved_group_takes_nothing_more() -> None:
    found = climbers()
    seq = found.say("mia/pc", "hello").seq
    act(found, "owen", g.dissolve_request())
    for body in BODIES.values():
        assert type(found.refusal("owen/pc", GROUP, body)) is TooLate
    for kind, body in (
        (MESSAGE, b"x"),
        (RECALL, recall_request(seq)),
        (EDIT, edit_request(1, b"")),
    ):
        assert type(found.refusal("mia/pc", kind, body)) is TooLate
    assert found.send("mia/pc", EventKind.VOID, b"") is not None
    assert may_read(member_of(found, "mia"), seq)


def test_the_maker_is_the_owner_and_counts_once() -> None:
    found = Deciding(SESSION)
    act(found, "owen", g.create_request("t", ["owen", "ada", "ada"]))
    assert group_of(found).members == 2
    assert role_of(found, "owen") is Role.OWNER


def test_a_group_is_handed_over() -> None:
    found = climbers()
    act(found, "owen", g.mute_request("mia", found.now_ms + 10_000))
    act(found, "owen", g.role_request("mia", "owner"))
    assert (role_of(found, "mia"), role_of(found, "owen")) == (Role.OWNER, Role.ADMIN)
    assert group_of(found).owner == "mia"
    found.say("mia/pc", "nobody could unmute an owner")
    act(found, "owen", g.leave_request())


def test_the_muted_wait_until_their_time_is_over() -> None:
    found = climbers()
    seq = found.say("mia/pc", "x").seq
    act(found, "ada", g.mute_request("mia", found.now_ms + 5_000))
    assert type(found.refusal("mia/pc", MESSAGE, b"x")) is Forbidden
    assert type(found.refusal("mia/pc", EDIT, edit_request(seq, b"y"))) is Forbidden
    assert refused(found, "mia", RECALL, recall_request(seq)) is None
    found.now_ms += 5_000
    found.say("mia/pc", "x")
    act(found, "ada", g.mute_request("mia", found.now_ms + 5_000))
    act(found, "ada", g.mute_request("mia", 0))
    found.say("mia/pc", "x")


def test_a_mute_of_all_ends_by_itself() -> None:
    found = climbers()
    act(found, "ada", g.mute_request(None, found.now_ms + 5_000))
    found.now_ms += 4_999
    assert type(found.refusal("mia/pc", MESSAGE, b"x")) is Forbidden
    found.now_ms += 1
    found.say("mia/pc", "x")


def test_going_out_and_coming_back_does_not_end_a_mute() -> None:
    found = climbers()
    act(found, "owen", g.joining_request(True))
    act(found, "owen", g.mute_request("mia", found.now_ms + 5_000))
    act(found, "mia", g.leave_request())
    act(found, "mia", g.join_request())
    assert type(found.refusal("mia/pc", MESSAGE, b"x")) is Forbidden


def test_an_admin_comes_back_as_a_member() -> None:
    found = climbers()
    act(found, "ada", g.leave_request())
    act(found, "owen", g.add_request(["ada"]))
    assert role_of(found, "ada") is Role.MEMBER


def test_who_was_in_reads_what_was_said_then() -> None:
    found = climbers()
    joined = member_of(found, "sam")
    assert joined is not None
    assert [may_read(joined, seq) for seq in range(1, 6)] == [True] * 4 + [False]
    assert readable(joined) == (1, 4)
    found.say("mia/pc", "while sam is away")
    act(found, "ada", g.add_request(["sam"]))
    back = member_of(found, "sam")
    assert [may_read(back, seq) for seq in range(1, 8)] == [False] * 5 + [True] * 2
    assert readable(back) == (6, None)
    assert not may_read(None, 1)
    assert readable(None) == (1, 0)


def test_who_is_in_already_is_added_without_a_change() -> None:
    found = climbers()
    before = dict(found.facts)
    act(found, "ada", g.add_request(["mia", "owen"]))
    act(found, "mia", g.join_request())
    act(found, "ada", g.remove_request(["sue"]))
    assert found.facts == before


def test_limits_say_what_to_do() -> None:
    found = climbers(RuleSettings(group_members_max=7, group_add_max=6))
    users = [f"user{at}" for at in range(7)]
    for body in (g.add_request(users), g.remove_request(users), g.create_request("t", users)):
        error = found.refusal("owen/pc", GROUP, body)
        assert type(error) is TooLarge
        assert "fewer" in str(error)
    assert type(found.refusal("owen/pc", GROUP, g.add_request(users[:3]))) is TooLarge
    act(found, "owen", g.add_request(users[:2]))
    act(found, "owen", g.joining_request(True))
    assert type(found.refusal("sue/pc", GROUP, g.join_request())) is TooLarge
    small = Deciding(SESSION, RuleSettings(group_members_max=2))
    assert type(small.refusal("a/pc", GROUP, g.create_request("t", ["b", "c"]))) is TooLarge


def test_a_thousand_users_of_common_names_fit_one_event() -> None:
    found = climbers()
    users = [f"user-{at:015}" for at in range(1_000)]
    act(found, "owen", g.add_request(users))
    assert len(found.events[-1].body) <= BODY_BYTES_MAX
    act(found, "owen", g.remove_request(users))
    assert group_of(found).members == 5
    longest = [f"{at:0128}" for at in range(480)]
    error = found.refusal("owen/pc", GROUP, g.add_request(longest))
    assert type(error) is TooLarge
    assert "fewer users" in str(error)


def test_members_are_listed_by_role_and_then_by_time() -> None:
    found = climbers()
    act(found, "owen", g.add_request(["sue"]))
    ranks = {key: fact.rank for key, fact in found.facts.items() if key.startswith("m/")}
    ordered = sorted((key for key in ranks if ranks[key]), key=lambda key: -ranks[key])
    assert ordered[0] == "m/owen"
    assert set(ordered[1:3]) == {"m/ada", "m/abe"}
    assert ordered[-1] == "m/sue"
    assert ranks["m/sam"] == 0
    assert min(ranks[key] for key in ordered) >= g.MEMBER_RANK_MIN > overlay_rank(1 << 61)


def test_an_event_tells_who_came_and_who_went() -> None:
    found = climbers()
    act(found, "owen", g.add_request(["sue", "mia", "zoe"]))
    assert [user for user, _ in g.event_memberships(found.events[-1])] == ["sue", "zoe"]
    act(found, "owen", g.remove_request(["zoe"]))
    ((user, row),) = g.event_memberships(found.events[-1])
    assert (user, row.role, row.left_seq) == ("zoe", Role.STRANGER, 6)
    assert g.event_memberships(found.say("mia/pc", "x")) == []


def test_rows_survive_their_bytes_and_others_say_so() -> None:
    group = Group("t", "owen", 5, 3, True, 7, 9)
    row = Membership(Role.ADMIN, 5, 6, 7)
    assert Group.from_bytes(group.to_bytes()) == group
    assert Membership.from_bytes(row.to_bytes()) == row
    assert Membership.from_bytes(row.to_bytes()).role is Role.ADMIN
    for kind in (Group, Membership):
        with pytest.raises(NewerFormat):
            kind.from_bytes(pack((2, 1)))
        with pytest.raises(CorruptData):
            kind.from_bytes(pack((1, 1)))


@pytest.mark.parametrize("body", [pack(("add", ["sue"])), pack(("create", ["t"])), pack(("x", []))])
def test_requests_of_another_form_are_refused(body: bytes) -> None:
    assert type(climbers().refusal("owen/pc", GROUP, body)) is BadRequest


# ---- a long life


class Model:
    """The dumb group: sets of names."""

    def __init__(self, owner: str, users: set[str]) -> None:
        self.owner, self.admins, self.members = owner, set[str](), {*users, owner}
        self.joined = dict.fromkeys(self.members, 1)
        self.joining = False

    def leads(self, user: str) -> bool:
        return user == self.owner or user in self.admins

    def over(self, user: str, other: str) -> bool:
        """Whether ``user`` may do something to ``other``, who is in."""
        below = other != self.owner and (user == self.owner or other not in self.admins)
        return self.leads(user) and below

    def let_in(self, users: list[str], seq: int) -> None:
        for user in set(users) - self.members:
            self.members.add(user)
            self.joined[user] = seq

    def let_out(self, users: list[str]) -> None:
        self.members -= set(users)
        self.admins -= set(users)

    def act(self, user: str, what: str, others: list[str], role: str, seq: int) -> bool:
        """Do it, or say that it is refused."""
        other, member = others[0], user in self.members
        match what:
            case "add" if self.leads(user):
                self.let_in(others, seq)
            case "join" if member or self.joining:
                self.let_in([user], seq)
            case "leave" if member and user != self.owner:
                self.let_out([user])
            case "remove" if self.leads(user) and all(
                self.over(user, one) for one in others if one in self.members
            ):
                self.let_out(others)
            case "role" if user == self.owner != other and other in self.members:
                self.admins.discard(other)
                if role == "owner":
                    self.owner, self.admins = other, {*self.admins, user}
                elif role == "admin":
                    self.admins.add(other)
            case "joining" if self.leads(user):
                self.joining = not self.joining
            case _:
                return False
        return True


@given(st.integers(0, 10**9))
def test_a_long_life_equals_sets_of_names(seed: int) -> None:
    rng = random.Random(seed)
    names = ["ann", "ben", "cat", "dan", "eva"]
    found, model = Deciding(SESSION), Model("ann", {"ben"})
    act(found, "ann", g.create_request("t", ["ben"]))
    for _ in range(40):
        user, others = rng.choice(names), rng.sample(names, rng.randint(1, 3))
        what = rng.choice(("add", "add", "join", "leave", "remove", "role", "joining", "say"))
        role = rng.choice(("owner", "admin", "admin", "member"))
        if what == "say":
            assert (refused(found, user, MESSAGE, b"x") is None) == (user in model.members)
            continue
        bodies = {
            "add": g.add_request(others),
            "join": g.join_request(),
            "leave": g.leave_request(),
            "remove": g.remove_request(others),
            "role": g.role_request(others[0], role),
            "joining": g.joining_request(not model.joining),
        }
        taken = refused(found, user, GROUP, bodies[what]) is None
        seq = len(found.events) + 1
        assert model.act(user, what, others, role, seq) == taken, (user, what, others, role)
        if taken:
            act(found, user, bodies[what])
        check_same(found, model, names)


def check_same(found: Deciding, model: Model, names: list[str]) -> None:
    group = group_of(found)
    assert (group.owner, group.members) == (model.owner, len(model.members))
    assert group.joining == model.joining
    for name in names:
        row = member_of(found, name)
        role = row.role if row is not None else Role.STRANGER
        assert (role is not Role.STRANGER) == (name in model.members)
        assert (role is Role.OWNER) == (name == model.owner)
        assert (role is Role.ADMIN) == (name in model.admins)
        if name in model.members:
            assert readable(row) == (model.joined[name], None)
