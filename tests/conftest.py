"""Fixtures and settings for every test."""

import signal

from hypothesis import settings

pytest_plugins = ["tests.support_redis", "tests.support_tls"]

# A busy machine is no defect: pytest's own timeout is there for what hangs.
settings.register_profile("without deadlines", deadline=None)
settings.load_profile("without deadlines")

# A shell starts what runs in the background with Ctrl-C ignored, and processes of tests inherit it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
