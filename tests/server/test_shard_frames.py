"""A turn of the loop that makes more than a frame holds sends several frames, in order."""

from __future__ import annotations

from im_actors.server.shard import FRAME_BATCH_BYTES_MAX, FRAME_BATCH_ROWS_MAX, in_frames


def test_few_rows_are_one_frame_and_none_are_none() -> None:
    assert list(in_frames(["a", "b"], len)) == [["a", "b"]]
    assert list(in_frames([], len)) == []


def test_many_rows_are_split_in_order() -> None:
    rows = list(range(2 * FRAME_BATCH_ROWS_MAX + 1))
    frames = list(in_frames(rows, lambda _: 0))
    assert [len(frame) for frame in frames] == [FRAME_BATCH_ROWS_MAX, FRAME_BATCH_ROWS_MAX, 1]
    assert [row for frame in frames for row in frame] == rows


def test_large_rows_are_split_and_one_too_large_stands_alone() -> None:
    half, whole = FRAME_BATCH_BYTES_MAX // 2, FRAME_BATCH_BYTES_MAX
    assert list(in_frames([half, half, 1, 2 * whole, 1], int)) == [
        [half, half],
        [1],
        [2 * whole],
        [1],
    ]
