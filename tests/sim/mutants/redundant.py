"""Rules whose removal alone nothing notices, because another rule keeps the same promise."""

REDUNDANT = ()
