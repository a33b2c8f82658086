"""Bodies of the admin API about operators."""

from datetime import datetime
from typing import Annotated, Any, Self

from pydantic import AfterValidator, Field, Strict, WithJsonSchema

from gateway.api.schemas import In, Out, at, example, named, when
from gateway.domain import names
from gateway.domain.operators import Operator, Role

_NAME: tuple[AfterValidator, WithJsonSchema] = named("operator", names.OPERATOR)
OperatorName = Annotated[str, *_NAME]


class OperatorIn(In):
    """A new operator."""

    model_config = example(name="alice", role="operator")
    name: OperatorName
    role: Annotated[Role, Strict(False)] = Field(
        description="viewer: reads; operator: tenants, keys, adapters, releases; admin: everything.")


class OperatorOut(Out):
    """An operator, without the key."""

    model_config = example(name="alice", role="operator", prefix="sy-operator-1f2e3d4c",
                           created_at="2026-01-31T12:00:00Z", revoked_at=None, revision=4)
    name: str
    role: Role
    prefix: str
    created_at: datetime
    revoked_at: datetime | None
    revision: int

    @classmethod
    def fields_of(cls, operator: Operator) -> dict[str, Any]:
        return {"name": operator.name, "role": operator.role, "prefix": operator.prefix, "revision": operator.revision,
                "created_at": at(operator.created_at), "revoked_at": when(operator.revoked_at)}

    @classmethod
    def of(cls, operator: Operator) -> Self:
        return cls(**cls.fields_of(operator))


class NewOperatorOut(OperatorOut):
    """An operator just created; `key` is shown here and never again."""

    model_config = example(
        key="sy-operator-1f2e3d4c-0123456789abcdefghijklmnopqrstuvwxyzABCDEFG", name="alice", role="operator",
        prefix="sy-operator-1f2e3d4c", created_at="2026-01-31T12:00:00Z", revoked_at=None, revision=4)
    key: str
