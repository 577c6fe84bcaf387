"""The reading side of mailboxes: a user's conversation list in memory, and the tiers below it.

    loading   the door: lists, totals, deltas and single conversations are asked for here
    view      one user's list, fed by the facts of his mailbox; ``memory`` holds those of all
    hedging   which tier is asked, and when the next one is asked too
    tiers     what a tier is: Redis (``tier_redis``), a local file (``tier_sqlite``), and the
              replicas' facts (``tier_facts``), which have everything
    updates   how the tiers follow what the views are told
    rows      rows, their order, and what is said about how much of a list one has

What rows mean is said by a ``RowFormat``, where groups end by ``Heads``; both are given.
"""
