"""Fixtures for every test (see tests/fixtures/), and how hypothesis goes about its work."""

import os

from hypothesis import HealthCheck, settings

pytest_plugins = ["tests.fixtures.redis", "tests.fixtures.yard"]

# A busy machine is no fault of the code. Where CI is set, hypothesis has a profile of its own that says so too.
settings.register_profile("switchyard", deadline=None, suppress_health_check=[HealthCheck.too_slow])
if not os.environ.get("CI"):
    settings.load_profile("switchyard")
