"""``python -m bench.mailbox``: conversation lists, unread counts and batch messages.

__main__       the parts in turn, and the report
asking         connections that send and ask, and a load of them
filling        a cluster's directory with conversations, made without the cluster
faults         the lists while Redis is away and the warm tier is slow
tiered         the cluster of ``faults``, a process of its own
truth          what the lists should have said, from the mailboxes' own events
broadcast      a batch, and the chat beside it
"""
