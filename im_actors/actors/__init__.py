"""The cluster under Ray: thin actor classes, placement, deployment.

Only ``ray_api`` calls Ray (and ``start_hook``, inside ``ray start``). The rest works without it,
and ``deploy`` never loads it into the caller's process.
"""
