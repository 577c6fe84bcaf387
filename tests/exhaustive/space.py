"""The states of a small cluster and the steps between them.

A state is a tuple of numbers (``names.Things``): budget, view, ledger, then for each owner its
machine, its calls to the view store and the answers on their way to it, then for each replica its
machine with its disk, and the requests on their way to it.

The network is a set of everything that was sent: a message may arrive at any time, in any order, as
often as it likes, or never. A message leaves the set when nothing can come of it any more: a
request whose epoch is below the promise on disk (its refusal is put on its way at that moment), an
answer of an attempt that is over.

Of steps whose order nobody can see only one order is explored:

- What a replica does by itself is seen when somebody hears an answer to it, so it is done then,
  just before (``Course``). The rules are held against everything that it could have done by then.
- What an owner only remembers of an answer is seen when it acts, so it hears the answers then.
- What can be asked or told without changing anybody is asked or told at once: nobody has to hear
  it.
- A call to the view store that goes well is carried out at once: a slow one that goes well looks
  like an owner that was slow to call.

Not explored: links that owners notice to be up or down, records that are sent again on an alarm
(the network repeats them anyway), followers and readers; and only where the bound says so, links to
spares that come up (``Bounds.spare_links``) and sessions that are forgotten (``Bounds.loads``).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from im_actors.core import owner as own
from im_actors.core.model import View, ViewState
from im_actors.core.owner import Phase
from im_actors.core.serving import ServingLimits
from tests.exhaustive import rules
from tests.exhaustive.bounds import LOSS, Bounds
from tests.exhaustive.machines import Course, Label, Machines
from tests.exhaustive.names import OWNERS, REPLICAS, unchanged
from tests.exhaustive.owner_node import new_owner
from tests.exhaustive.replica_node import SLOT, Broken, ReplicaNode
from tests.exhaustive.words import told

State = tuple[int, ...]
Steps = Iterator[tuple[Label, "State | Broken"]]

BUDGET, VIEW, LEDGER, OWNER = 0, 1, 2, 3


class Space(Machines):
    """The steps of one configuration."""

    def __init__(self, bounds: Bounds) -> None:
        super().__init__(bounds)
        self.calls = OWNER + len(OWNERS)
        self.answers = self.calls + len(OWNERS)
        self.replica = self.answers + len(OWNERS)
        self.requests = self.replica + self.count
        self._tidied: dict[Any, int] = {}
        self._agrees: dict[Any, int] = {}
        self._knows: set[Any] = set()
        self._idle: dict[str, int] = {}

    # -- the beginning -------------------------------------------------------------------------

    def initial(self) -> State:
        things, bounds = self.things, self.bounds
        view = View(SLOT, 0, int(ViewState.RECOVERING), "", tuple(self.members[:3]))
        replicas = [
            ReplicaNode(
                *(m.replica, m.disk),
                tuple(other.replica for other in self.members if other != m),
                m.replica in bounds.lazy,
            )
            for m in self.members
        ]
        budget = things.number((0, 0) if bounds.settled is not None else self._budget())
        state: State = (
            *(budget, things.number_of(view), things.number(())),
            *(self.idle(f"{name}1") for name in OWNERS),
            *([0] * (2 * len(OWNERS))),
            *map(things.number_of, replicas),
            *([0] * self.count),
        )
        if bounds.settled is not None:
            state = self._settle(state, bounds.settled)
        state = (things.number(self._budget()), *state[1:])
        for words in bounds.script:
            state = self._scripted(state, words)
        return state

    def _budget(self) -> tuple[int, int]:
        return self.bounds.crashes, self.bounds.store_faults

    def idle(self, name: str) -> int:
        known = self._idle.get(name)
        if known is None:
            bounds = self.bounds
            settings = own.OwnerSettings(copy_records_max=bounds.copy_records)
            sessions_max = 0 if bounds.loads else 1
            # Nobody recalls here: what is remembered for those who do would only tell states apart.
            limits = ServingLimits(
                records_in_flight_max=bounds.flights, sessions_max=sessions_max, recent_bytes_max=1
            )
            owner = new_owner(name, self.members, settings, limits)
            known = self._idle[name] = self.things.number_of(owner)
        return known

    def _settle(self, state: State, records: int) -> State:
        """The first owner takes the slot and serves, nothing goes wrong, everything arrives."""
        state = self._step_of(state, ("owner", 0, "take"))
        for n in range(records + 1):
            if n:
                state = self._step_of(state, ("owner", 0, "submit", n))
            while (calm := self._calm_step(state)) is not None:
                state = calm
        return state

    def _calm_step(self, state: State) -> State | None:
        """The owner hears something; afterwards, whatever replicas can do they have done."""
        for label, after in self.successors(state):
            if isinstance(after, Broken):
                raise after
            calm = label[0] == "owner" and type(label[2]) is tuple and "due" not in label
            phases = [self.owner_facts(after[OWNER + i]).phase for i in range(len(OWNERS))]
            if calm and Phase.WAITING not in phases and Phase.HALTED not in phases:
                return after
        for index in range(self.count):
            courses = self._local(state[self.replica + index], state[self.requests + index], 0)
            sound = [course for course in courses if not isinstance(course.number, Broken)]
            longest = max(sound, key=lambda course: len(course.path))
            if longest.path:
                return self._advanced(state, index, longest)
        return None

    def _step_of(self, state: State, wanted: Label) -> State:
        for label, after in self.successors(state):
            if label[: len(wanted)] == wanted and not isinstance(after, Broken):
                return after
        raise Broken(f"the settled beginning cannot be reached: nobody can {wanted[2:]}")

    def _scripted(self, state: State, words: str) -> State:
        names = unchanged()
        for label, after in self.successors(state):
            if not isinstance(after, Broken) and re.search(words, told(self.things, label, names)):
                return after
        raise AssertionError(f"no step like {words!r}")

    # -- steps ---------------------------------------------------------------------------------

    def successors(self, state: State) -> Steps:
        """Every step that somebody else can see; Broken where it breaks a rule."""
        trees = self.things.trees
        crashes, store_faults = trees[state[BUDGET]]
        for index in range(self.count):
            yield from self._replica_moves(state, index)
        room = trees[state[VIEW]][2] < self.bounds.epochs
        for index in range(len(OWNERS)):
            number = state[OWNER + index]
            other = self.owner_facts(state[OWNER + 1 - index]).phase
            free = room and (self.bounds.rivals or other is Phase.IDLE)
            for event in self._own_events(number, free):
                for after, outs in self._owner_step(number, event):
                    if after != number or outs:
                        label = ("owner", index, *event)
                        yield from self._carried(label, state, index, after, outs)
            if self.owner_facts(number).phase is not Phase.IDLE:
                yield from self._hearings(state, index)
                if crashes:
                    spent = self._spend(state, crashes - 1, store_faults)
                    yield ("owner", index, "crashes"), self._owner_crashed(spent, index)
            if state[self.calls + index]:
                yield from self._store_moves(state, index)

    def _spend(self, state: State, crashes: int, store_faults: int) -> State:
        return (self.things.number((crashes, store_faults)), *state[1:])

    # -- replicas ------------------------------------------------------------------------------

    def _replica_moves(self, state: State, index: int) -> Steps:
        """The courses of a replica that break a rule, or that end in a request to another one."""
        crashes = self.things.trees[state[BUDGET]][0]
        number, requests = state[self.replica + index], state[self.requests + index]
        for course in self._local(number, requests, crashes):
            label = ("replica", index, *course.path)
            if isinstance(course.number, Broken):
                yield label, course.number
            elif any(out[0] == "replica" for out in course.new):
                after = self._advanced(state, index, course)
                if after != state:
                    yield label, after

    def _advanced(self, state: State, index: int, course: Course) -> State:
        new = list(state)
        if course.crashes:
            crashes, faults = self.things.trees[state[BUDGET]]
            new[BUDGET] = self.things.number((crashes - course.crashes, faults))
        new[self.replica + index] = course.number
        new[self.requests + index] = course.requests
        self._deliver(new, course.outs)
        return tuple(new)

    # -- the network ---------------------------------------------------------------------------

    def _deliver(self, new: list[int], outs: Any) -> None:
        """Put messages on their way."""
        for kind, target, item in outs:
            if kind == "replica":
                place = self.requests + target
                added = self.things.added(new[place], item)
                if added != new[place]:
                    new[place], answers = self._pruned(new[self.replica + target], added)
                    self._deliver(new, answers)
            else:
                index = OWNERS.index(target[0])
                place = self.answers + index
                if self.owner_facts(new[OWNER + index]).me == target:
                    added = self.things.added(new[place], item)
                    if added != new[place]:
                        new[place] = self._prune_answers(new[OWNER + index], added)

    def _tidy(self, new: list[int]) -> None:
        """Forget requests of which nothing can come any more, because of what their owner is."""
        owners = new[OWNER : self.calls]
        for place in range(self.requests, self.requests + self.count):
            if new[place]:
                key = (new[place - self.count], new[place], *owners)
                known = self._tidied.get(key)
                if known is None:
                    kept = [
                        item
                        for item in self.things.sets[new[place]]
                        if not self._is_over(key[0], item, owners)
                    ]
                    known = self._tidied[key] = self.things.set_number(kept)
                new[place] = known

    # -- owners --------------------------------------------------------------------------------

    def _own_events(self, number: int, room: bool) -> Iterator[Any]:
        """What may happen to an owner without a message."""
        facts, bounds = self.owner_facts(number), self.bounds
        phase = facts.phase
        if room and (phase is Phase.IDLE or (phase is Phase.SERVING and bounds.needless)):
            yield ("take",)
        starts = phase in (Phase.WAITING, Phase.COPYING, Phase.OPENING)
        waits = phase in (Phase.SEALING, Phase.CLAIMING, Phase.ACTIVATING)
        if waits or (starts and room):
            yield ("due", "attempt")
        if phase is Phase.SERVING:
            for n in range(1, bounds.records + 1):
                if n not in facts.waiting:
                    yield ("submit", n)
            if bounds.loads:
                yield from self._forgetting(facts)

    def _forgetting(self, facts: rules.OwnerFacts) -> Iterator[Any]:
        """What may happen to an owner's knowledge of its session."""
        if facts.loads < self.bounds.loads:
            yield ("due", "idle")
        if not facts.asked:
            yield ("asked",)
        for turn in range(len(facts.members)) if facts.lookups else ():
            yield ("due", "lookup", turn)

    def _hearings(self, state: State, index: int) -> Steps:
        """The owner hears answers. Those that it only remembers are heard just before the one that
        makes it act, because nobody can tell the difference; and in the order of the replicas."""
        place = OWNER + index
        seen = {state}
        waiting: list[tuple[State, int, Label]] = [(state, 0, ())]
        for at, least, heard in waiting:
            before = at[place]
            for event in self._decided_by(before) if heard else ():
                for after, outs in self._owner_step(before, event):
                    label = ("owner", index, *heard, *event)
                    yield from self._carried(label, at, index, after, outs)
            for replica, item, did, come in self._at_hand(at, index, least):
                for after, outs in self._owner_step(before, ("item", item)):
                    label = (*heard, *did, ("hears", item))
                    if not self._is_silent(before, after, outs):
                        if after != before or outs:
                            full = ("owner", index, *label)
                            yield from self._carried(full, come, index, after, outs)
                        continue
                    new = list(come)
                    new[place] = after
                    answers = self.answers + index
                    new[answers] = self._prune_answers(after, new[answers])
                    then = tuple(new)
                    if then not in seen:
                        seen.add(then)
                        waiting.append((then, replica, label))

    def _decided_by(self, number: int) -> Iterator[Any]:
        """What may happen to an owner without a message, and depends on what it remembers."""
        facts = self.owner_facts(number)
        if facts.phase is Phase.SEALING:
            yield ("due", "attempt")
        if facts.phase is Phase.SERVING and facts.loads < self.bounds.loads:
            yield ("due", "idle")

    def _at_hand(
        self, state: State, index: int, least: int
    ) -> Iterator[tuple[int, int, Label, State]]:
        """Answers that the owner can hear: those on their way, and those that replicas can give."""
        for item in self.things.sets[state[self.answers + index]]:
            replica = REPLICAS.index(self.things.trees[item][1][1])
            if replica >= least:
                yield replica, item, (), state
        crashes = self.things.trees[state[BUDGET]][0]
        number = state[OWNER + index]
        me = self.owner_facts(number).me
        for replica in range(least, self.count):
            courses = self._local(
                state[self.replica + replica], state[self.requests + replica], crashes
            )
            for course in courses:
                for kind, target, item in course.new:
                    if kind == "owner" and target == me and not self._is_stale(number, item):
                        did = tuple((REPLICAS[replica], *part) for part in course.path)
                        yield replica, item, did, self._advanced(state, replica, course)

    def _carried(self, label: Label, state: State, index: int, after: Any, outs: Any) -> Steps:
        """An owner's step, with what the view store makes of its calls."""
        try:
            done = self._owner_after(state, index, after, outs)
        except Broken as broken:
            yield label, broken
            return
        calls = [out[1] for out in outs if out[0] == "call"]
        assert len(calls) < 2
        if calls:
            yield from self._called(label, done, index, calls[0])
        elif done != state:
            yield label, done

    def _owner_after(self, state: State, index: int, after: Any, outs: Any) -> State:
        if isinstance(after, Broken):
            raise after
        new = list(state)
        place = OWNER + index
        new[place] = after
        if after != state[place]:
            self._commit(new, state[place], after)
            answers = self.answers + index
            new[answers] = self._prune_answers(after, new[answers])
        for out in outs:
            if out[0] == "replica":
                self._deliver(new, (out,))
            elif out[0] != "call":
                self._outcome(new, out)
        if after != state[place]:
            self._check_owners(new, index)
        self._check_replicas(new)
        self._tidy(new)
        return tuple(new)

    def _commit(self, new: list[int], before: int, after: int) -> None:
        facts, old = self.owner_facts(after), self.owner_facts(before)
        if facts.phase is not Phase.SERVING:
            return
        same = old.phase is Phase.SERVING and old.epoch == facts.epoch
        if same and old.commit_lsn == facts.commit_lsn:
            return
        if same and old.commit_lsn > facts.commit_lsn:
            raise Broken(f"I8: the commit point of {facts.me} goes back")
        replicas = [self.replica_facts(new[self.replica + i]) for i in range(self.count)]
        ledger = self.things.trees[new[LEDGER]]
        by_name = {replica.name: replica for replica in replicas}
        longer = rules.committed(ledger, facts, by_name, self.bounds.judge)
        new[LEDGER] = self.things.number(longer)

    def _outcome(self, new: list[int], out: Any) -> None:
        ledger = self.things.trees[new[LEDGER]]
        if out[0] == "head":
            rules.told_head(ledger, out[1])
        elif out[0] == "published":
            rules.acked(ledger, out[3], out[4], out[2])
        elif out[2] == 0:
            rules.acked(ledger, out[1][1], out[1][2], out[3])
        elif out[2] == own.KeyConflict.code:
            raise Broken(f"I9: {out[1]} was sent in one form and is refused as another")

    def _owner_crashed(self, state: State, index: int) -> State:
        new = list(state)
        me = self.owner_facts(state[OWNER + index]).me
        new[OWNER + index] = self.idle(f"{me[0]}{int(me[1:]) + 1}")
        new[self.answers + index] = 0
        calls = self.things.sets[state[self.calls + index]]
        ghosts = [self._ghost(call) for call in calls if self.things.trees[call][1] == "swap"]
        new[self.calls + index] = self.things.set_number(ghosts)
        self._tidy(new)
        return self._drop_ghosts(tuple(new))

    # -- the view store ------------------------------------------------------------------------

    def _called(self, label: Label, state: State, index: int, call: int) -> Steps:
        """The store carries out a call and answers at once, or a fault is spent on it."""
        trees = self.things.trees
        kind = trees[call][1]
        done, event = self._executed(state, call)
        yield from self._told((*label, kind), done, index, event)
        crashes, faults = trees[state[BUDGET]]
        if not faults:
            return
        state = self._spend(state, crashes, faults - 1)
        done = self._spend(done, crashes, faults - 1)
        late = self.things.number((tuple, "late", trees[event]))
        yield (*label, kind, "answer late"), self._with(done, index, late)
        yield (*label, kind, "slow"), self._with(state, index, call)
        if kind == "swap":
            nothing = self.things.number((own.ViewSwapped, None))
            yield from self._told((*label, kind, "answer lost"), done, index, nothing)
            ghost = self._with(state, index, self._ghost(call))
            yield from self._told((*label, kind, "takes effect late"), ghost, index, nothing)

    def _executed(self, state: State, call: int) -> tuple[State, int]:
        """The store carries out the call; what it answers."""
        trees = self.things.trees
        view = trees[state[VIEW]]
        read = trees[call][1] == "read"
        if not read and trees[call][2] == view:
            view = trees[call][3]
            state = self._drop_ghosts((state[0], self.things.number(view), *state[2:]))
        answer = own.ViewRead if read else own.ViewSwapped
        return state, self.things.number((answer, view))

    def _told(self, label: Label, state: State, index: int, event: int) -> Steps:
        kind, view = self.things.trees[event]
        if kind is own.ViewRead and view is not None and view[2] >= self.bounds.epochs:
            return
        for after, outs in self._owner_step(state[OWNER + index], ("event", event)):
            yield from self._carried(label, state, index, after, outs)

    def _store_moves(self, state: State, index: int) -> Steps:
        """Calls on which a fault was spent come to their end."""
        trees = self.things.trees
        place = self.calls + index
        members = self.things.sets[state[place]]
        for call in sorted(set(members)):
            rest = list(members)
            rest.remove(call)
            less = (*state[:place], self.things.set_number(rest), *state[place + 1 :])
            kind = trees[call][1]
            label = ("owner", index, kind)
            if kind == "late":
                yield from self._told(label, less, index, self.things.number(trees[call][2]))
                continue
            done, event = self._executed(less, call)
            if kind != "ghost":
                yield from self._told((*label, "at last"), done, index, event)
                continue
            try:
                self._check_replicas(list(done))
            except Broken as broken:
                yield label, broken
            else:
                yield label, done

    def _ghost(self, call: int) -> int:
        _, _, old, new = self.things.trees[call]
        return self.things.number((tuple, "ghost", old, new))

    def _with(self, state: State, index: int, call: int) -> State:
        place = self.calls + index
        calls = self.things.set_number((*self.things.sets[state[place]], call))
        return (*state[:place], calls, *state[place + 1 :])

    def _drop_ghosts(self, state: State) -> State:
        """Late swaps from a view that is gone take no effect any more."""
        trees = self.things.trees
        new = list(state)
        for place in range(self.calls, self.answers):
            if state[place]:
                kept = [
                    call
                    for call in self.things.sets[state[place]]
                    if trees[call][1] != "ghost" or trees[call][2] == trees[state[VIEW]]
                ]
                new[place] = self.things.set_number(kept)
        return tuple(new)

    # -- rules ---------------------------------------------------------------------------------

    def _check_replicas(self, new: list[int]) -> None:
        """Whatever the replicas can do by themselves from here on, the rules hold."""
        names = [member[1] for member in self.things.trees[new[VIEW]][5][1:]]
        ledger, crashes = new[LEDGER], self.things.trees[new[BUDGET]][0]
        bits = []
        for i in range(self.count):
            member = REPLICAS[i] in names
            key = (new[self.replica + i], new[self.requests + i], crashes, ledger, member)
            known = self._agrees.get(key)
            if known is None:
                known = self._agrees[key] = self._compute_bits(*key)
            bits.append(known)
        wanted = 1 if self.bounds.judge == LOSS else 3
        rules.copies(bits, self.things.trees[ledger], wanted)

    def _compute_bits(
        self, number: int, requests: int, crashes: int, ledger: int, member: bool
    ) -> int:
        bits = -1
        loss = self.bounds.judge == LOSS
        for course in self._local(number, requests, 0 if loss else crashes):
            if not isinstance(course.number, Broken):
                facts = self.replica_facts(course.number)
                entries = self.things.trees[ledger]
                bits &= rules.replica_agrees(facts, entries, member and not loss)
        return bits

    def _check_owners(self, new: list[int], index: int) -> None:
        mine = new[OWNER + index]
        key = (mine, new[OWNER + 1 - index], new[LEDGER])
        if key in self._knows:
            return
        facts = self.owner_facts(mine)
        rules.one_owner(facts, self.owner_facts(new[OWNER + 1 - index]))
        rules.knows_its_sessions(facts, self.things.trees[new[LEDGER]])
        self._knows.add(key)
