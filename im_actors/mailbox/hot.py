"""Which accounts are asked for so often that their lists are worth loading before the next ask."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class HotConfig:
    half_life_s: float = 60.0
    """After so long an ask counts half."""
    asks: float = 100.0
    """An account with so many (faded) asks is hot."""
    accounts_max: int = 4_096
    """Accounts that are watched; when there are more, those asked for least are forgotten."""


class HotAccounts:
    """Asks per account, fading with time."""

    def __init__(self, config: HotConfig) -> None:
        self._config = config
        self._counts: dict[str, tuple[float, float, bool]] = {}
        """By user: the count, when it was so, and whether he was found hot."""

    def __len__(self) -> int:
        return len(self._counts)

    def asked(self, user: str, now_s: float) -> bool:
        """Count it. True: the account has become hot by this ask."""
        count, at_s, hot = self._counts.get(user, (0.0, now_s, False))
        count = self._faded(count, at_s, now_s) + 1.0
        became = count >= self._config.asks and not hot
        # Half as many, and it may become hot again.
        hot = became or (hot and count >= self._config.asks / 2)
        self._counts[user] = (count, now_s, hot)
        if len(self._counts) > self._config.accounts_max:
            self._forget(now_s)
        return became

    def _faded(self, count: float, at_s: float, now_s: float) -> float:
        fade: float = 0.5 ** ((now_s - at_s) / self._config.half_life_s)
        return count * fade

    def _forget(self, now_s: float) -> None:
        """A quarter at once, so that it is seldom."""

        def faded(user: str) -> float:
            count, at_s, _ = self._counts[user]
            return self._faded(count, at_s, now_s)

        least = sorted(self._counts, key=faded)
        for user in least[: len(least) // 4 + 1]:
            del self._counts[user]
