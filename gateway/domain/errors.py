"""Every way a call or a change can fail that the caller can act on.

    SwitchyardError
    ├── InvalidRequest            what was sent cannot be understood; fix it and send again
    │   ├── MalformedJson         the body is not one JSON object
    │   ├── FieldRefused          the field is the gateway's to set, or would break isolation
    │   └── IdempotencyKeyReused  another request was sent with this Idempotency-Key; give each request its own
    ├── NotAuthenticated          no key, a wrong, expired or revoked one
    ├── PermissionDenied          the key is valid, but its role does not reach; `required_role` does
    ├── NotFound                  the named thing does not exist for this caller
    │   └── ModelNotFound         no such adapter, version or base model for this key
    ├── Conflict                  the change contradicts what the registry holds
    │   └── NotReplayed           this Idempotency-Key's first request has no answer that could be given again
    ├── LostRace                  somebody changed it since it was read; read again
    ├── BodyTooLarge              send less, or raise the limit
    ├── ArtifactRefused           the artifact would not serve; `reasons` says why
    ├── EngineRefused             vLLM itself said no to a load, an unload or a probe; its words are kept
    └── Unavailable               try again after `retry_after` seconds
        ├── NoHealthyReplica      no replica of the pool can take the call
        ├── RegistryUnavailable   Redis does not answer; requests go on, changes do not
        │   └── OutcomeUnknown    Redis stopped answering while the change was made; read before you repeat it
        ├── ReplicaUnreachable    this replica does not answer, or not in time
        ├── AdapterNotLoaded      the version could not be loaded on any replica
        ├── UpstreamFailed        the replica failed, and so did the one retry
        └── UpstreamTimeout       the replica did not finish its answer in time; it is not asked again

`code` is stable and documented in the README; `api/errors.py` alone knows HTTP statuses.
"""

from collections.abc import Sequence


class SwitchyardError(Exception):
    """Base of all; `message` says what was wrong and what to do, `param` names the field at fault."""

    code = "internal_error"

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param


class InvalidRequest(SwitchyardError):
    code = "invalid_request"


class MalformedJson(InvalidRequest):
    code = "malformed_json"


class FieldRefused(InvalidRequest):
    code = "field_refused"


class IdempotencyKeyReused(InvalidRequest):
    code = "idempotency_key_reused"


class NotAuthenticated(SwitchyardError):
    code = "invalid_api_key"


class PermissionDenied(SwitchyardError):
    """`required_role` is the least role that may do it."""

    code = "permission_denied"

    def __init__(self, message: str, *, required_role: str) -> None:
        super().__init__(message)
        self.required_role = required_role


class NotFound(SwitchyardError):
    code = "not_found"


class ModelNotFound(NotFound):
    code = "model_not_found"


class Conflict(SwitchyardError):
    code = "conflict"


class NotReplayed(Conflict):
    code = "not_replayed"


class LostRace(SwitchyardError):
    """`current` is the revision the entity has now, 0 if it is gone."""

    code = "revision_mismatch"

    def __init__(self, message: str, *, current: int = 0) -> None:
        super().__init__(message, param="If-Match")
        self.current = current


class BodyTooLarge(SwitchyardError):
    code = "body_too_large"


class ArtifactRefused(SwitchyardError):
    """`reasons` lists every check that failed, each a sentence."""

    code = "artifact_refused"

    def __init__(self, reasons: Sequence[str]) -> None:
        super().__init__("The artifact was refused: " + " ".join(reasons))
        self.reasons = tuple(reasons)


class EngineRefused(SwitchyardError):
    code = "engine_refused"


class Unavailable(SwitchyardError):
    """`retry_after` is in whole seconds."""

    code = "unavailable"

    def __init__(self, message: str, *, retry_after: int = 1) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class NoHealthyReplica(Unavailable):
    code = "no_healthy_replica"


class RegistryUnavailable(Unavailable):
    code = "registry_unavailable"


class OutcomeUnknown(RegistryUnavailable):
    code = "outcome_unknown"


class ReplicaUnreachable(Unavailable):
    code = "replica_unreachable"


class AdapterNotLoaded(Unavailable):
    code = "adapter_not_loaded"


class UpstreamFailed(Unavailable):
    code = "upstream_failed"


class UpstreamTimeout(Unavailable):
    code = "upstream_timeout"
