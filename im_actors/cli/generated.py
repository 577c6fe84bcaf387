"""A made-up chat, the same for the same seed: many scripts, emoji, empty and largest messages."""

from __future__ import annotations

import random
from itertools import accumulate

from im_actors.cli.chatfile import Line
from im_actors.core.model import BODY_BYTES_MAX

MESSAGES_DEFAULT = 21_000
SEED_DEFAULT = 20_260_131
LARGEST = 6
"""Messages of exactly the size limit."""
START_MS = 1_767_225_600_000  # 2026-01-01T00:00:00Z
PEOPLE_MAX = 30

PEOPLE_NAMES = (
    "alice bob carol dave erin frank grace heidi ivan judy ken laura mallory nina oscar peggy"
    " 李雷 韩梅梅 王芳 さくら 太郎 지민 수진 محمد فاطمة דוד מרים नेहा अर्जुन Σωκράτης Ольга Дмитрий"
    " Zoë François Jürgen Nguyễn Łukasz Şule ไพลิน 🦊"
)
TOPICS_NAMES = "team family 家族 друзья 🏕️camping équipe projekt اصدقاء support release"
# Words between spaces.
SCRIPTS = {
    "english": "ok the meeting moved to three can you look at this again please ship it",
    "chinese": "你好 今天 我们 去 故宫 怎么样 门票 多少钱 谢谢 再见 明天 见",
    "japanese": "おはよう 今日 会議 は 三時 です ありがとう カメラ 半角ｶﾅ",
    "korean": "안녕하세요 오늘 회의 세 시 고마워요 내일 봐요",
    "arabic": "مرحبا كيف حالك اليوم شكرا إلى اللقاء ٣",
    "hebrew": "שלום מה נשמע תודה להתראות בְּרֵאשִׁית",
    "hindi": "नमस्ते क्षत्रिय धन्यवाद कल मिलेंगे",
    "thai": "สวัสดี ครับ ขอบคุณ พรุ่งนี้ น้ำ",
    "cyrillic": "привет сегодня встреча спасибо ёж",
    # Composed and decomposed forms: nothing on the way may normalise them.
    "accents": "\u00e9 e\u0301 \u00e5 a\u030a \u212b Z̷̢͎a̵l̶g̸o ﬁ na\u00efve nai\u0308ve",
    "emoji": "👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 ❤️ ❤ 🇪🇺 🧑🏿‍🚀 1️⃣ 🫠 🏴󠁧󠁢󠁳󠁣󠁴󠁿",
    "odd": "\u202eabc\u202c \u200b \ufeff a\x00b \u2028 \U0010ffff \ufffd \t",
}
PEOPLE = PEOPLE_NAMES.split(" ")
TOPICS = TOPICS_NAMES.split(" ")
WORDS = {script: words.split(" ") for script, words in SCRIPTS.items()}


def generate(messages: int = MESSAGES_DEFAULT, seed: int = SEED_DEFAULT) -> list[Line]:
    """``messages`` lines in conversations of 2 to 30 people, shuffled as a day would."""
    rng = random.Random(seed)
    rooms = _rooms(rng, max(2, min(120, messages // 20)))
    # A few busy rooms and many quiet ones.
    weights = list(accumulate(1 / (rank + 3) for rank in range(len(rooms))))
    largest = set(rng.sample(range(messages), min(LARGEST, messages // 100)))
    lines: list[Line] = []
    now_ms = START_MS
    for index in range(messages):
        (name, people), *_ = rng.choices(rooms, cum_weights=weights)
        now_ms += rng.randrange(40)
        text = _largest(rng) if index in largest else _text(rng)
        lines.append(Line(name, rng.choice(people), now_ms, text, f"{seed:08x}{index:08x}"))
    return lines


def _rooms(rng: random.Random, count: int) -> list[tuple[str, list[str]]]:
    rooms = []
    for number in range(count):
        size = 2 if rng.random() < 0.5 else rng.randint(3, PEOPLE_MAX)
        rooms.append((f"{rng.choice(TOPICS)}-{number:03}", rng.sample(PEOPLE, size)))
    return rooms


def _text(rng: random.Random) -> str:
    if rng.random() < 0.01:
        return ""
    words = WORDS[rng.choice(list(WORDS))]
    text = " ".join(rng.choices(words, k=min(40, int(rng.expovariate(0.15)) + 1)))
    if rng.random() < 0.1:
        text += " " + rng.choice(WORDS["emoji"])
    return text + "\n" + rng.choice(words) if rng.random() < 0.03 else text


def _largest(rng: random.Random) -> str:
    """As many bytes of UTF-8 as a message may have, to the byte."""
    unit = rng.choice(["漢", "🦊", "x", "é"])
    size = len(unit.encode())
    return unit * (BODY_BYTES_MAX // size) + "x" * (BODY_BYTES_MAX % size)
