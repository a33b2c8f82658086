"""Salts are alike on every gateway, different for every tenant, and never shared before the secret is."""

from gateway.dataplane.salts import Salts
from gateway.domain.model import Secret, Snapshot

SHARED = Secret(name="cache-salt", value="s3cret")
WITH = Snapshot.of(1, {SHARED.path: SHARED})


def test_two_gateways_of_one_registry_give_a_tenant_the_same_salt() -> None:
    assert Salts(lambda: WITH, None, "one")("acme") == Salts(lambda: WITH, None, "two")("acme")


def test_two_tenants_have_different_salts() -> None:
    salts = Salts(lambda: WITH, None, "one")
    assert salts("acme") != salts("globex")


def test_the_settings_secret_goes_before_the_registrys() -> None:
    assert Salts(lambda: WITH, "given", "x")("acme") == Salts(Snapshot.empty, "given", "y")("acme")


def test_a_gateway_that_has_never_seen_the_registry_salts_with_its_own_secret_until_it_does() -> None:
    held = [Snapshot.empty()]
    salts = Salts(lambda: held[0], None, "own")
    before = salts("acme")
    assert before != Salts(Snapshot.empty, None, "another")("acme")
    held[0] = WITH
    assert salts("acme") == Salts(lambda: WITH, None, "x")("acme") != before
