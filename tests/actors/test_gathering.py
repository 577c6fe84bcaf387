"""Waiting for hosts, with hosts that come and stay away."""

from __future__ import annotations

import pytest

from im_actors.actors import gathering
from im_actors.actors.gathering import wait_for_hosts
from im_actors.actors.placement import Host
from im_actors.errors import NotReachable

HEAD = Host("10.0.0.10", ("im_head", "node:10.0.0.10"))
FOUR = [f"replica-{number}" for number in range(1, 5)]


def hosts(names: str) -> list[Host]:
    """The head, and one host for each of these disks."""
    return [HEAD, *(Host(f"10.0.1.{ord(name)}", (f"im_disk_{name}",)) for name in names)]


def test_they_are_waited_for_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gathering, "LOOK_S", 0.0)
    looks = iter([hosts(""), hosts("a"), hosts("a"), hosts("abc")])
    said: list[str] = []
    assert wait_for_hosts(FOUR[:3], {}, lambda: next(looks), 60, said.append) == hosts("abc")
    assert [text.partition(" (")[0] for text in said] == [
        "0 of 3 disks are there, missing: 3 more disks",
        "1 of 3 disks are there, missing: 2 more disks",
    ]


def test_who_does_not_come_is_named() -> None:
    known = {"replica-1": "im_disk_z"}
    with pytest.raises(NotReachable, match=r"2 of 4 disks .* im_disk_z of replica-1, 1 more disk"):
        wait_for_hosts(FOUR, known, lambda: hosts("ab"), 0, lambda text: None)


def test_a_known_one_may_stay_away_when_three_are_there() -> None:
    known = dict(zip(FOUR, (f"im_disk_{name}" for name in "abcd"), strict=True))
    said: list[str] = []
    assert wait_for_hosts(FOUR, known, lambda: hosts("abc"), 0, said.append) == hosts("abc")
    assert said == ["3 of 4 disks are there, missing: im_disk_d of replica-4; going on without"]
    with pytest.raises(NotReachable, match="im_disk_c of replica-3, im_disk_d of replica-4"):
        wait_for_hosts(FOUR, known, lambda: hosts("ab"), 0, said.append)


def test_a_new_one_may_not() -> None:
    known = dict(zip(FOUR[:3], (f"im_disk_{name}" for name in "abc"), strict=True))
    with pytest.raises(NotReachable, match="1 more disk"):
        wait_for_hosts(FOUR, known, lambda: hosts("abc"), 0, lambda text: None)
