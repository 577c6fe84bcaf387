"""A whole cluster of the real ``core`` machines in one thread with virtual time."""
