"""Fixtures and settings for every test."""

from hypothesis import settings

pytest_plugins = ["tests.support_redis", "tests.support_tls"]

# A busy machine is no defect: pytest's own timeout is there for what hangs.
settings.register_profile("without deadlines", deadline=None)
settings.load_profile("without deadlines")
