"""Every error of ours has a status, OpenAI's type, a code, and one envelope."""

import json
from typing import Any

import pytest

from gateway.api.errors import STATUSES, codes, envelope, reply_to, status_of
from gateway.domain import errors


def every_class(root: type[errors.SwitchyardError] = errors.SwitchyardError) -> list[type[errors.SwitchyardError]]:
    return [root, *(found for child in root.__subclasses__() for found in every_class(child))]


def body_of(error: errors.SwitchyardError) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(reply_to(error).body)["error"]
    return found


@pytest.mark.parametrize(("error", "status"), [
    (errors.InvalidRequest("m"), 400), (errors.MalformedJson("m"), 400), (errors.FieldRefused("m"), 400),
    (errors.IdempotencyKeyReused("m"), 422), (errors.NotReplayed("m"), 409), (errors.OutcomeUnknown("m"), 503),
    (errors.PermissionDenied("m", required_role="admin"), 403),
    (errors.NotAuthenticated("m"), 401), (errors.NotFound("m"), 404), (errors.ModelNotFound("m"), 404),
    (errors.Conflict("m"), 409), (errors.LostRace("m", current=3), 412), (errors.BodyTooLarge("m"), 413),
    (errors.ArtifactRefused(["m"]), 422), (errors.SwitchyardError("m"), 500), (errors.EngineRefused("m"), 502),
    (errors.UpstreamFailed("m"), 502), (errors.Unavailable("m"), 503), (errors.NoHealthyReplica("m"), 503),
    (errors.RegistryUnavailable("m"), 503), (errors.ReplicaUnreachable("m"), 503), (errors.AdapterNotLoaded("m"), 503),
])
def test_each_error_has_its_status_and_type(error: errors.SwitchyardError, status: int) -> None:
    reply = reply_to(error)
    assert reply.status == status
    assert body_of(error)["type"] == ("invalid_request_error" if status < 500 else "server_error")
    assert body_of(error)["code"] == error.code


def test_no_class_is_without_a_status_and_every_entry_is_of_a_class() -> None:
    assert set(STATUSES) <= set(every_class())
    for error in every_class():
        assert 400 <= status_of(error)[0] < 600


def test_the_codes_of_the_readme_are_those_of_the_classes() -> None:
    assert codes().keys() == {error.code for error in every_class()}
    assert codes()["model_not_found"] == 404
    assert codes()["internal_error"] == 500


def test_the_envelope_has_openais_four_fields_and_its_own_length() -> None:
    reply = reply_to(errors.NotFound("There is no “x”.", param="tenant"))
    assert json.loads(reply.body) == {"error": {
        "message": "There is no “x”.", "type": "invalid_request_error", "param": "tenant", "code": "not_found"}}
    assert dict(reply.headers) == {
        b"content-type": b"application/json", b"content-length": str(len(reply.body)).encode()}


def test_unavailable_says_when_to_come_back() -> None:
    assert dict(reply_to(errors.NoHealthyReplica("m", retry_after=7)).headers)[b"retry-after"] == b"7"


def test_a_missing_key_is_answered_with_how_to_send_one() -> None:
    assert dict(reply_to(errors.NotAuthenticated("m")).headers)[b"www-authenticate"] == b"Bearer"


def test_a_lost_race_says_the_current_revision_in_body_and_etag() -> None:
    reply = reply_to(errors.LostRace("m", current=12))
    assert dict(reply.headers)[b"etag"] == b'"12"'
    assert json.loads(reply.body)["error"]["current_revision"] == 12
    assert b"etag" not in dict(reply_to(errors.LostRace("m", current=0)).headers), "what is gone has none"


def test_a_denied_permission_says_which_role_would_do() -> None:
    assert body_of(errors.PermissionDenied("m", required_role="admin"))["required_role"] == "admin"


def test_a_refused_artifact_lists_every_reason() -> None:
    assert body_of(errors.ArtifactRefused(["One.", "Two."]))["reasons"] == ["One.", "Two."]


def test_text_that_is_no_unicode_does_not_break_the_answer() -> None:
    assert json.loads(envelope(400, "lone \ud800 surrogate").body)["error"]["message"] == "lone ? surrogate"
