"""Waits and deadlines."""

from __future__ import annotations

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from im_actors.core.backoff import Alarms, full_jitter_ms, ladder_ms, stretched_ms
from im_actors.core.story import Story


def test_ladder_is_1_3_5_5_seconds_and_a_little_more() -> None:
    rng = Random(1)
    for step, base in enumerate([1_000, 3_000, 5_000, 5_000, 5_000]):
        waits = [ladder_ms(step, rng) for _ in range(200)]
        assert base <= min(waits)
        assert max(waits) <= base * 1.2
        assert len(set(waits)) > 50


def test_a_stretched_wait_is_never_shorter() -> None:
    rng = Random(1)
    assert all(stretched_ms(7, rng) >= 7 for _ in range(100))


def test_full_jitter_grows_from_the_base_to_the_cap() -> None:
    rng = Random(1)
    for step, top in [(0, 100), (1, 200), (3, 800), (10, 5_000), (10_000, 5_000)]:
        waits = [full_jitter_ms(step, 100, 5_000, rng) for _ in range(500)]
        assert 0 <= min(waits) < top * 0.1
        assert top * 0.9 < max(waits) <= top


@given(
    st.lists(
        st.tuples(st.sampled_from(["set", "clear", "due"]), st.integers(0, 4), st.integers(0, 50)),
        max_size=80,
    )
)
def test_alarms_like_a_dict(actions: list[tuple[str, int, int]]) -> None:
    alarms: Alarms[int] = Alarms()
    dumb: dict[int, int] = {}
    now_ms = 0
    for action, key, value in actions:
        if action == "set":
            alarms.set(key, now_ms + value)
            dumb[key] = now_ms + value
        elif action == "clear":
            alarms.clear(key)
            dumb.pop(key, None)
        else:
            now_ms += value
            due = {k for k, at_ms in dumb.items() if at_ms <= now_ms}
            assert set(alarms.due(now_ms)) == due
            dumb = {k: at_ms for k, at_ms in dumb.items() if k not in due}
        next_ms = alarms.next_ms()
        if dumb:
            assert next_ms is not None
            assert next_ms <= min(dumb.values())
        else:
            assert next_ms is None


def test_story_finds_what_is_about_a_key_and_is_bounded() -> None:
    story = Story(limit=4)
    story.note(1, ("team", 1), "forgotten")
    story.note(2, ("team", 1), "sent %d", 7)
    story.note(3, ("team",), "paused")
    story.note(4, ("team", 2), "sent")
    story.note(5, ("other", 1), "sent")
    assert story.story("team", 1) == ["2 [team 1] sent 7", "3 [team] paused"]
    assert len(story.story("team")) == 3
    assert len(story) == len(story.story()) == 4
