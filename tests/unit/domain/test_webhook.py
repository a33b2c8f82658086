"""Which URLs may be told, and what of."""

import pytest

from gateway.domain.errors import InvalidRequest
from gateway.domain.happening import Kind
from gateway.domain.kinds import entity_from
from gateway.domain.webhook import Webhook, check_url

HOOK = Webhook(name="ops", url="https://h.example/in?key=s", secret="s" * 16, kinds=(Kind.ABORT,), created_by="alice",
               created_at=1.0)


@pytest.mark.parametrize("url", [
    "https://hooks.example/switchyard", "http://127.0.0.1:9000", "https://h.example/a/b?c=d&e=%20", "http://[::1]:80/x",
])
def test_an_http_url_may_be_told(url: str) -> None:
    assert check_url(url) == url


@pytest.mark.parametrize("url", [
    "", "ftp://h.example/", "file:///etc/passwd", "unix:/run/x.sock", "gopher://h/", "javascript:alert(1)", "//h/x",
    "http://", "http:///x", "http://user:pw@h/", "http://h:0/", "http://h:99999/", "http://h/ x", "http://h/x#y",
    "http://h\\@evil/", "http://exämple/", "http://h/\n", "http://h/\"x", "https://-h/",
])
def test_anything_else_may_not(url: str) -> None:
    with pytest.raises(InvalidRequest):
        check_url(url)


def test_a_webhook_comes_back_from_the_registry_as_it_was() -> None:
    assert entity_from(HOOK.path, HOOK.to_document(), 0) == HOOK


def test_a_kind_that_only_a_newer_gateway_knows_is_passed_over() -> None:
    document = {**HOOK.to_document(), "kinds": ["abort", "eclipse"], "colour": "red"}
    assert entity_from(HOOK.path, document, 0) == HOOK


def test_a_webhook_wants_what_it_names_or_everything() -> None:
    assert HOOK.wants(Kind.ABORT) and not HOOK.wants(Kind.START)
    assert Webhook.from_document({**HOOK.to_document(), "kinds": []}, 0).wants(Kind.START)


def test_the_origin_keeps_what_may_be_secret_to_itself() -> None:
    assert HOOK.origin == "https://h.example"
