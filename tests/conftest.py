"""Fixtures for every test; see tests/fixtures/."""

pytest_plugins = ["tests.fixtures.redis", "tests.fixtures.yard"]
