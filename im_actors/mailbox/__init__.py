"""The reading side of mailboxes: a user's conversation list in memory, and the tiers below it.

view      the list itself, fed by the facts of the user's mailbox
loading   who asks for a list, the total or one conversation comes here
hedging   which tier is asked, and when the next one is asked too
tiers     what a tier is; in Redis (``tier_redis``), in SQLite (``tier_sqlite``), replicas below
updates   how the tiers follow what the views are told
"""
