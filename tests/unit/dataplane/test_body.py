"""What a caller sends is forwarded as it came, but for the fields that are the gateway's."""

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.dataplane import body
from gateway.domain.errors import FieldRefused, InvalidRequest, MalformedJson

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3), max_leaves=8)
OWN = body.DROPPED | body.REFUSED.keys() | {
    "model", "stream", "user", "stream_options", "cache_salt", "echo", "prompt_logprobs"}
FIELDS = st.dictionaries(st.text().filter(lambda name: name not in OWN), JSON, max_size=6)


def forwarded(fields: dict[str, Any], *, ask_for_usage: bool = True) -> tuple[dict[str, Any], bool]:
    data, asked = body.prepare(
        body.parse(json.dumps(fields).encode()), "acme/support@1-0", "salt", ask_for_usage=ask_for_usage)
    return json.loads(data), asked


@given(FIELDS)
def test_fields_that_are_not_the_gateways_arrive_unchanged(fields: dict[str, Any]) -> None:
    sent, _ = forwarded({**fields, "model": "support"})
    assert sent == {**fields, "model": "acme/support@1-0", "cache_salt": "salt"}


def test_numbers_keep_their_digits() -> None:
    data, _ = body.prepare(
        body.parse(b'{"model":"m","seed":123456789012345678901234567890,"top_p":1.0,"x":1e-7}'), "s", "t",
        ask_for_usage=False)
    assert b'"seed":123456789012345678901234567890,"top_p":1.0,"x":1e-7' in data


def test_a_model_named_twice_reaches_the_replica_once() -> None:
    data, _ = body.prepare(body.parse(b'{"model":"mine","mod\\u0065l":"other"}'), "served", "t", ask_for_usage=False)
    assert data.count(b'"model"') == 1
    assert body.parse(b'{"model":"mine","mod\\u0065l":"other"}').model == "other"


@pytest.mark.parametrize("name", sorted(body.DROPPED))
def test_what_the_gateway_sets_itself_is_dropped(name: str) -> None:
    sent, _ = forwarded({"model": "m", name: "from the caller"})
    assert sent.get(name) != "from the caller"


@pytest.mark.parametrize("name", sorted(body.REFUSED))
def test_a_field_that_breaks_isolation_is_refused_by_name_unless_it_is_empty(name: str) -> None:
    with pytest.raises(FieldRefused) as refused:
        body.parse(json.dumps({"model": "m", name: {"x": 1}}).encode())
    assert refused.value.param == name
    assert body.parse(json.dumps({"model": "m", name: None}).encode()).model == "m"


@pytest.mark.parametrize(("fields", "param"), [
    ({"prompt_logprobs": 0}, "prompt_logprobs"), ({"prompt_logprobs": 5}, "prompt_logprobs"),
    ({"echo": True, "logprobs": 1}, "echo"), ({"echo": True, "logprobs": 0}, "echo"),
])
def test_logprobs_of_the_prompt_pass_only_where_the_operator_allows_them(fields: dict[str, Any], param: str) -> None:
    data = json.dumps({"model": "m", **fields}).encode()
    with pytest.raises(FieldRefused) as refused:
        body.parse(data)
    assert refused.value.param == param
    assert body.parse(data, allow_prompt_logprobs=True).model == "m"


@pytest.mark.parametrize("fields", [
    {"prompt_logprobs": None}, {"echo": True}, {"logprobs": 1}, {"echo": False, "logprobs": True}])
def test_other_logprobs_and_echoes_pass(fields: dict[str, Any]) -> None:
    assert forwarded({"model": "m", **fields})[0].items() >= fields.items()


def test_usage_is_asked_for_in_a_stream_and_the_callers_own_options_stay() -> None:
    sent, asked = forwarded({"model": "m", "stream": True, "stream_options": {"continuous_usage_stats": False}})
    assert asked
    assert sent["stream_options"] == {"continuous_usage_stats": False, "include_usage": True}
    assert forwarded({"model": "m", "stream": True, "stream_options": {"include_usage": True}})[1] is False
    assert forwarded({"model": "m", "stream": True, "stream_options": None})[1] is True
    assert "stream_options" not in forwarded({"model": "m"})[0]
    assert "stream_options" not in forwarded({"model": "m", "stream": True}, ask_for_usage=False)[0]


@pytest.mark.parametrize("data", [b"", b"{", b'{"model":"m"} x', b'{"model":"m","a":[}', b'{"model":"m","a":nope}',
                                  b'{"a":"\xff","model":"m"}', b"\xff\xfe"])
def test_what_is_not_json_is_called_malformed(data: bytes) -> None:
    with pytest.raises(MalformedJson):
        body.parse(data)


@pytest.mark.parametrize(("data", "param"), [
    (b"[]", None), (b'"x"', None), (b"{}", "model"), (b'{"model":""}', "model"), (b'{"model":null}', "model"),
    (b'{"model":1}', "model"), (b'{"model":"m","stream":"yes"}', "stream"), (b'{"model":"m","user":[]}', "user"),
])
def test_a_wrong_field_is_named(data: bytes, param: str | None) -> None:
    with pytest.raises(InvalidRequest) as refused:
        body.parse(data)
    assert refused.value.param == param


def test_stream_options_that_are_no_object_are_refused() -> None:
    with pytest.raises(InvalidRequest) as refused:
        forwarded({"model": "m", "stream": True, "stream_options": 3})
    assert refused.value.param == "stream_options"


@given(st.binary(max_size=200))
def test_no_bytes_crash_the_parser(data: bytes) -> None:
    with suppress(InvalidRequest):
        body.parse(data)
