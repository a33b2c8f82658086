"""Tenants and keys: the key's text exists once, and what is kept proves it and no more."""

from dataclasses import dataclass
from hashlib import sha256

import pytest

from gateway.controlplane.changes import Changes
from gateway.controlplane.tenants import Tenants
from gateway.domain.errors import InvalidRequest, NotFound
from gateway.system import System
from tests.fixtures.memory import MemoryRegistry

NOW = 1000.0


@dataclass(frozen=True, slots=True)
class Still(System):
    """A clock that stands."""

    def now(self) -> float:
        return NOW


@pytest.fixture
def registry() -> MemoryRegistry:
    return MemoryRegistry()


@pytest.fixture
async def tenants(registry: MemoryRegistry) -> Tenants:
    made = Tenants(Changes(registry, registry, Still()), Still())
    await made.create("alice", "acme")
    await made.create("alice", "beta")
    return made


async def test_a_keys_text_has_its_id_and_43_characters_and_is_kept_as_sha256_only(
    registry: MemoryRegistry, tenants: Tenants,
) -> None:
    key, text = await tenants.create_key("alice", "acme", "shop")
    start, key_id, secret = text.split("-", 2)
    assert (start, len(key_id), len(secret)) == ("sy", 8, 43)
    assert key.prefix == f"sy-{key_id}"
    assert key.sha256 == sha256(text.encode()).hexdigest()
    assert secret not in str(registry.truth)
    assert secret not in str(registry.changes)
    assert key.sha256 not in str(registry.changes)


async def test_two_keys_are_never_alike(tenants: Tenants) -> None:
    texts = {(await tenants.create_key("alice", "acme", "same"))[1] for _ in range(20)}
    assert len(texts) == 20


async def test_a_key_of_another_tenant_cannot_be_revoked_or_seen(tenants: Tenants) -> None:
    key, _ = await tenants.create_key("alice", "acme", "shop")
    with pytest.raises(NotFound):
        await tenants.revoke_key("alice", "beta", key.id)
    assert tenants.keys("beta") == []
    assert tenants.keys("acme")[0].is_valid_at(NOW)


async def test_revoking_is_for_good_and_asking_twice_keeps_the_time(
    registry: MemoryRegistry, tenants: Tenants,
) -> None:
    key, _ = await tenants.create_key("alice", "acme", "shop")
    first = await tenants.revoke_key("alice", "acme", key.id)
    again = await tenants.revoke_key("alice", "acme", key.id)
    assert first == again
    assert not again.is_valid_at(NOW)
    assert [c.action for c in registry.changes].count("key.revoke") == 1


async def test_a_key_cannot_expire_before_it_is_made(tenants: Tenants) -> None:
    with pytest.raises(InvalidRequest):
        await tenants.create_key("alice", "acme", "shop", expires_at=NOW)
    key, _ = await tenants.create_key("alice", "acme", "shop", expires_at=NOW + 1)
    assert key.is_valid_at(NOW)
    assert not key.is_valid_at(NOW + 1)
