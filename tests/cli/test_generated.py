from __future__ import annotations

import unicodedata

from im_actors.cli.generated import MESSAGES_DEFAULT, generate
from im_actors.core.model import BODY_BYTES_MAX, check_name
from im_actors.core.names import check_session


def test_the_same_seed_gives_the_same_chat() -> None:
    assert generate(500, 7) == generate(500, 7)
    assert generate(500, 7) != generate(500, 8)


def test_it_is_what_the_demo_promises() -> None:
    lines = generate()
    assert len(lines) == MESSAGES_DEFAULT >= 20_000
    people: dict[str, set[str]] = {}
    for line in lines:
        people.setdefault(check_session(line.conversation), set()).add(check_name("u", line.sender))
    assert max(map(len, people.values())) > 20
    assert sum(len(members) == 2 for members in people.values()) > 10
    assert len({line.id for line in lines}) == len(lines)


def test_all_kinds_of_text() -> None:
    texts = [line.text for line in generate()]
    sizes = sorted(len(text.encode()) for text in texts)
    assert sizes[0] == 0
    assert sizes[-3:] == [BODY_BYTES_MAX] * 3
    whole = "".join(texts)
    for sample in (
        "你好",
        "👩‍👩‍👧‍👦",
        "שלום",
        "مرحبا",
        "e\u0301",
        "\u00e9",
        "\x00",
        "\u2028",
        "\u202e",
    ):
        assert sample in whole
    assert unicodedata.normalize("NFC", whole) != whole


def test_small_ones_work_too() -> None:
    for count in (1, 2, 50):
        assert len(generate(count)) == count
