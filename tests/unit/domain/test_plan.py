"""A plan reads back as it was written, in every form; one that makes no sense is refused with the step's number."""

import json
import tomllib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.domain.errors import InvalidRequest
from gateway.domain.plan import DEFAULT, AtDeadline, Plan, Step, as_duration, duration, read

TIMES = st.integers(0, 10**8).map(lambda ms: ms / 1000)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    below = draw(st.lists(st.integers(1, 9_999), max_size=6, unique=True).map(sorted))
    deadline = draw(st.integers(1, 10**8)) + 10**5
    steps = []
    for parts in [*below, 10_000]:
        min_time = draw(TIMES)
        own = min_time + draw(st.integers(1, 1000)) if min_time >= deadline or draw(st.booleans()) else None
        steps.append(Step(weight=parts / 100, min_time=min_time, min_requests=draw(st.integers(0, 10**6)),
                          gate=draw(st.booleans()), deadline=None if own is None else round(own, 3)))
    return Plan(steps=tuple(steps), deadline=float(min(deadline, 31_536_000)),
                at_deadline=draw(st.sampled_from(AtDeadline)))


@given(plans())
def test_a_plan_reads_back_from_its_text(plan: Plan) -> None:
    assert read(str(plan)) == plan


@given(plans())
def test_a_plan_reads_back_from_its_document(plan: Plan) -> None:
    document = json.loads(json.dumps(plan.to_document(), allow_nan=False))
    assert read(document) == plan
    assert Plan.from_document(document) == plan


@given(st.integers(0, 10**11))
def test_a_time_reads_back_from_its_text(milliseconds: int) -> None:
    assert duration(as_duration(milliseconds / 1000)) == milliseconds / 1000


@pytest.mark.parametrize("text", ["", "10", "m", "10 m", "10m5", "5s10m", "1.5h", "-1s", "10M", "٣s"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no time"):
        duration(text)


def test_text_means_what_it_says() -> None:
    plan = read("5% for 10m and at least 200 requests, 12.5 % gate within 2h, 100%; within 1h30m else hold")
    assert plan == Plan(
        steps=(Step(weight=5, min_time=600, min_requests=200), Step(weight=12.5, gate=True, deadline=7200),
               Step(weight=100)),
        deadline=5400, at_deadline=AtDeadline.HOLD)


def test_a_toml_table_means_the_same_as_text() -> None:
    table = tomllib.loads("""
        deadline = "90m"
        at_deadline = "hold"
        [[steps]]
        weight = 5
        min_time = "10m"
        min_requests = 200
        [[steps]]
        weight = 12.5
        gate = true
        deadline = 7200
        [[steps]]
        weight = 100
    """)
    assert read(table) == read("5% for 10m min 200, 12.5% gate within 2h, 100%; within 90m else hold")


def test_steps_of_a_table_may_be_text() -> None:
    assert read({"steps": ["5% for 10m", {"weight": 100}]}) == read("5% for 10m, 100%")


def test_a_field_of_a_later_release_is_dropped_from_a_kept_plan_but_refused_from_an_operator() -> None:
    document = {**DEFAULT.to_document(), "later": 1}
    document["steps"][0]["later"] = 1
    assert Plan.from_document(document) == DEFAULT
    with pytest.raises(InvalidRequest, match="'later'"):
        read(document)


def test_the_step_at_100_percent_compares_nothing() -> None:
    assert (read("5%, 25%, 100%").compared, read("100%").compared) == (2, 0)


def test_the_default_plan_has_its_name() -> None:
    assert read("default") is read(" default ") is DEFAULT
    assert str(DEFAULT) == "5% for 10m min 200, 25% for 10m min 500, 50% for 10m min 500, 100%"


@pytest.mark.parametrize(("given_plan", "words"), [
    ("", r"Step 1 .* must begin with its weight"),
    ("soon, 100%", r"Step 1 .*'soon'.* must begin with its weight"),
    ("5%", r"Step 1 .* add ', 100%'"),
    ("5%, 5%, 100%", r"Step 2 .* does not raise the weight above 5%"),
    ("50%, 25%, 100%", r"Step 2 .* does not raise the weight above 50%"),
    ("0%, 100%", r"Step 1 .* sends no caller"),
    ("1.234%, 100%", r"Step 1 .* 2 decimals"),
    ("101%", r"Step 1 .* from 0 to 100"),
    ("5%, 25% for, 100%", r"Step 2 .* ends after 'for'"),
    ("5%, 25% for ten, 100%", r"Step 2 .*'ten' is no time"),
    ("5% min few, 100%", r"Step 1 .* such as 'min 200'"),
    ("5% gate gate, 100%", r"Step 1 .* twice"),
    ("5% later, 100%", r"Step 1 .* use for, min, gate, within"),
    ("5% for 2d, 100%", r"Step 1 .* such as 'within 4d'"),
    ("5% within 0s, 100%", r"Step 1 .* such as 'within 1m'"),
    ("100%; else explode", r"The plan does 'explode' .* abort or hold"),
    ("100%; perhaps", r"The plan, after ';', has 'perhaps'"),
    (", ".join(["1%"] * 101), r"The plan has 101 steps"),
    (7, r"The plan must be text"),
    ({}, r"The plan needs 'steps'"),
    ({"steps": "100%"}, r"The plan needs 'steps'"),
    ({"steps": []}, r"The plan has 0 steps"),
    ({"steps": [7]}, r"Step 1 .* must be a table"),
    ({"steps": [{"weight": 100, "wait": 1}]}, r"Step 1 .*'wait', which it does not know"),
    ({"steps": [{}]}, r"Step 1 .* weight None is no percentage"),
    ({"steps": [{"weight": "100"}]}, r"Step 1 .* weight '100' is no percentage"),
    ({"steps": [{"weight": 100, "min_requests": 1.5}]}, r"Step 1 .* whole number"),
    ({"steps": [{"weight": 100, "min_requests": -1}]}, r"Step 1 .* asks for -1 requests"),
    ({"steps": [{"weight": 100, "gate": "no"}]}, r"Step 1 .* true or false"),
    ({"steps": [{"weight": 100, "min_time": None}]}, r"Step 1 .* min_time of 0 to"),
    ({"steps": [{"weight": 100, "min_time": -1}]}, r"Step 1 .* min_time of 0 to 31536000 seconds"),
    ({"steps": [{"weight": 100, "deadline": float("nan")}]}, r"Step 1 .* deadline of 0 to"),
    ({"steps": [{"weight": 100, "min_time": 10**400}]}, r"Step 1 .* min_time of 0 to"),
    ("100% for 366d", r"Step 1 .* use 0 to 365d"),
    ({"steps": ["100%"], "deadline": "later"}, r"The plan: deadline 'later' is no time"),
    ({"steps": ["100%"], "at_deadline": ["abort"]}, r"The plan does .* abort or hold"),
    ({"steps": ["100%"], "step": 1}, r"The plan has 'step'"),
])
def test_a_plan_that_makes_no_sense_is_refused_with_what_to_do(given_plan: object, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words) as refused:
        read(given_plan)
    assert refused.value.param == "plan"


JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(
        st.sampled_from(["steps", "deadline", "at_deadline", "weight", "min_time", "min_requests", "gate"]), inner))


TEXT = st.lists(st.sampled_from(
    ["5%", "25%", "100%", ",", ";", "for", "min", "gate", "within", "else", "10m", "200", "hold", "and", "?"]
)).map(" ".join)


@given(JSON | TEXT | st.lists(JSON | TEXT, max_size=4).map(lambda steps: {"steps": steps}))
def test_whatever_is_sent_gives_a_plan_or_an_invalid_request(sent: object) -> None:
    try:
        plan = read(sent)
    except InvalidRequest:
        return
    assert read(str(plan)) == plan


@given(plans(), st.integers(0, 10_000).map(lambda parts: parts / 100))
def test_the_step_at_a_weight_is_the_last_that_does_not_exceed_it(plan: Plan, weight: float) -> None:
    step = plan.steps[plan.index_at(weight)]
    following = plan.weight_after(weight)
    assert step.weight <= weight or step is plan.steps[0]
    assert following is None if weight == 100 else following is not None and following > weight
    assert all(s.weight <= weight or s.weight >= (following or 0) for s in plan.steps)
