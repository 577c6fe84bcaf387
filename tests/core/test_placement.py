"""Rendezvous hashing: only what must move moves."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from im_actors.core.placement import members_for, owner_for, ranked, ranked_replicas
from im_actors.core.takeover import ReplicaInfo

names = st.sets(st.text("abcdefgh", min_size=1, max_size=4), min_size=1, max_size=8)
slots = st.integers(0, 1023)


def infos(hosts: dict[str, str]) -> list[ReplicaInfo]:
    return [ReplicaInfo(name, f"{name}-disk", host) for name, host in hosts.items()]


def chosen(slot: int, hosts: dict[str, str]) -> list[str]:
    return [info.name for info in members_for(slot, infos(hosts))]


@given(slots, names, st.text("xyz", min_size=1, max_size=3))
def test_a_new_shard_takes_slots_only_for_itself(slot: int, shards: set[str], new: str) -> None:
    assert owner_for(slot, shards | {new}) in (owner_for(slot, shards), new)


@given(slots, names)
def test_a_lost_shard_moves_only_its_own_slots(slot: int, shards: set[str]) -> None:
    owner = owner_for(slot, shards)
    for other in shards - {owner}:
        assert owner_for(slot, shards - {other}) == owner


def test_without_shards_nobody_owns_a_slot() -> None:
    assert owner_for(5, []) is None


def test_the_order_of_names_does_not_matter() -> None:
    assert ranked(5, ["a", "b", "c"]) == ranked(5, ["c", "a", "b"])


def test_slots_are_spread_over_shards() -> None:
    shards = ["a", "b", "c", "d"]
    counts = [sum(owner_for(slot, shards) == name for slot in range(256)) for name in shards]
    assert min(counts) > 256 / 4 / 2


@given(slots, st.dictionaries(st.text("abc", min_size=1, max_size=3), st.sampled_from("123456")))
def test_members_are_three_on_as_many_hosts_as_there_are(slot: int, hosts: dict[str, str]) -> None:
    members = chosen(slot, hosts)
    assert len(set(members)) == len(members) == min(3, len(hosts))
    distinct = len({hosts[name] for name in members})
    assert distinct == min(3, len(set(hosts.values())))


@given(slots, st.dictionaries(st.text("abc", min_size=1, max_size=3), st.sampled_from("123456")))
def test_a_replica_that_holds_nothing_is_lost_without_any_move(
    slot: int, hosts: dict[str, str]
) -> None:
    members = chosen(slot, hosts)
    for other in set(hosts) - set(members):
        rest = {name: host for name, host in hosts.items() if name != other}
        assert chosen(slot, rest) == members


def test_spares_are_ranked_as_members_are() -> None:
    hosts = {name: name for name in "abcdef"}
    order = [info.name for info in ranked_replicas(7, infos(hosts))]
    assert chosen(7, hosts) == order[:3] == ranked(7, hosts)[:3]
