"""Every knob: `SWITCHYARD_<NAME>` in the environment, checked once at start; a `.env` file is not read."""

import os
import re
from pathlib import Path
from typing import Any, Literal, NamedTuple
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

PREFIX = "SWITCHYARD_"
_REDIS_SCHEMES = ("redis", "rediss", "unix", "redis+sentinel", "redis+cluster")
_REPLICA_SCHEMES = ("http", "https", "unix")
_SECRET_NAMES = frozenset({"replica_api_key", "operator_key", "metrics_key", "secret", "judge_api_key"})


class SettingsError(ValueError):
    """A setting is wrong; the message names each, what was given and what to give instead."""


class Row(NamedTuple):
    """One line of the settings table."""

    name: str
    default: str
    meaning: str


class Settings(BaseSettings):
    """All settings, checked and frozen; paths are absolute."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_file=None, env_ignore_empty=True, frozen=True,
                                      extra="ignore")

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8080, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    workers: int = Field(1, ge=1, le=256, description="Gateway processes that share the port.")
    state_path: Path = Field(Path(".switchyard/state"), description=(
        "Folder for everything that must survive a restart: the embedded Valkey's data, artifacts, the operator's "
        "key, logs, the last snapshot."))
    redis_url: str | None = Field(None, repr=False, description=(
        "Registry: `redis://`, `rediss://`, `unix://`, `redis+sentinel://` or `redis+cluster://`. Unset: an embedded "
        "Valkey under `state_path`."))
    registry: str = Field("default", description="Name of the registry, so that several can share one Redis.")
    base_model: str | None = Field(None, description=(
        "Base model (Hugging Face id or path) that artifacts are checked against. Unset: what the replicas report."))
    replicas: str = Field("", description="Replicas that are always there: `name=url`, comma separated.")
    replica_api_key: SecretStr | None = Field(None, description="Key that the replicas of `replicas` ask for.")
    operator_key: SecretStr | None = Field(None, description=(
        "Key for `/admin/v1`. Unset: made once and kept in `state_path`/operator.key."))
    metrics_key: SecretStr | None = Field(None, description=(
        "Key that may read `/metrics` and nothing else, for Prometheus; the operator's key may too."))
    secret: SecretStr | None = Field(None, description=(
        "Secret that the tenants' cache salts and the signatures of evaluation records are made from, the same for all "
        "gateways of a registry. Unset: made once and kept in the registry."))
    artifacts_path: Path | None = Field(None, description=(
        "Artifact store, which the replicas must see too. Unset: `state_path`/artifacts."))
    max_body_bytes: int = Field(8 << 20, ge=1024, description="Largest request body, in bytes.")
    allow_prompt_logprobs: bool = Field(False, description=(
        "Let `prompt_logprobs`, and `echo` with `logprobs`, through: with LoRA on they can end vLLM's engine."))
    max_artifact_bytes: int = Field(4 << 30, ge=1024, description="Largest artifact, in bytes.")
    max_rank: int = Field(64, ge=1, le=512, description=(
        "Highest adapter rank; at most the replicas' `--max-lora-rank`."))
    request_timeout_seconds: float = Field(600, gt=0, description="Longest time for a whole answer.")
    connect_timeout_seconds: float = Field(2, gt=0, description="Longest wait for a connection to a replica.")
    health_interval_seconds: float = Field(1, gt=0, description="Time between two looks at a replica.")
    eject_after_failures: int = Field(3, ge=1, description="Failures in a row after which a replica gets no requests.")
    drain_seconds: float = Field(1, ge=0, description=(
        "After SIGTERM, how long `/readyz` says 503 while requests are still accepted, so that load balancers notice."))
    shutdown_seconds: float = Field(600, ge=0, description="How long requests in flight may then take to end.")
    retire_grace_seconds: float = Field(10, ge=0, description=(
        "How long a retired version stays loaded for requests that were routed to it."))
    min_effect: float = Field(0.001, ge=0, description=(
        "Smallest change of a log probability (nats) by which an adapter must differ from its base model."))
    parity: Literal["off", "warn", "required"] = Field("warn", description=(
        "What becomes of a version whose log probabilities in the engine are not those that its trainer left in "
        "parity.json: `off`, `warn`, or `required` to refuse it, and any without that file."))
    shadow_max_in_flight: int = Field(8, ge=0, description="Copies for shadow versions under way at a time; 0: none.")
    shadow_tokens_a_minute: int = Field(60_000, ge=1, description=(
        "Completion tokens that shadow versions may cost a minute, in each gateway process."))
    quality_share: float = Field(1.0, ge=0, le=100, description=(
        "Percent of the answers that are sampled and scored, of tenants that opted in and named no share."))
    quality_samples_a_second: float = Field(10.0, gt=0, le=1000, description=(
        "Samples that each gateway process takes at most; the rest is shed."))
    quality_window_seconds: float = Field(3600, ge=60, le=604_800, description=(
        "How far back an adapter's rolling quality looks."))
    judge_url: str | None = Field(None, description=(
        "Server that judges samples where an adapter's policy asks for it: any that speaks OpenAI's chat completions, "
        "such as `https://host/v1`. Unset: nobody does."))
    judge_api_key: SecretStr | None = Field(None, description="Key that the judge asks for.")
    judge_model: str = Field("", validate_default=True, description="Model that judges, as `judge_url` calls it.")
    judge_calls_a_minute: int = Field(60, ge=1, le=100_000, description=(
        "Calls that each gateway process may make to the judge, repeats counted."))
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description=(
        "`debug`, `info`, `warning` or `error`."))
    metrics_max_series: int = Field(2000, ge=1, description=(
        "Most (tenant, adapter, version, track) combinations a metric tells apart; the rest is `other`."))

    @field_validator("log_level", mode="before")
    @classmethod
    def _lower(cls, value: object) -> object:
        return value.lower() if isinstance(value, str) else value

    @field_validator("state_path", "artifacts_path")
    @classmethod
    def _absolute(cls, value: Path | None) -> Path | None:
        return None if value is None else Path(os.path.abspath(value.expanduser()))

    @field_validator("redis_url")
    @classmethod
    def _redis_scheme(cls, value: str | None) -> str | None:
        if value is not None and value.partition("://")[0] not in _REDIS_SCHEMES:
            raise ValueError("begin it with " + ", ".join(f"{s}://" for s in _REDIS_SCHEMES)
                             + "; leave it unset for an embedded Valkey")
        return value

    @field_validator("registry")
    @classmethod
    def _registry_name(cls, value: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", value):
            raise ValueError("use 1 to 64 letters, digits, '.', '_' and '-'")
        return value

    @field_validator("judge_url")
    @classmethod
    def _judge_scheme(cls, value: str | None) -> str | None:
        if value is not None and (urlsplit(value).scheme not in ("http", "https") or not urlsplit(value).hostname):
            raise ValueError("write it as https://host/v1 or http://host:port/v1")
        return value

    @field_validator("judge_model")
    @classmethod
    def _judge_has_model(cls, value: str, info: ValidationInfo) -> str:
        if not value and info.data.get("judge_url") is not None:
            raise ValueError("name the model that judges at SWITCHYARD_JUDGE_URL")
        return value

    @field_validator("replicas")
    @classmethod
    def _replica_list(cls, value: str) -> str:
        parse_replicas(value)
        return value

    @property
    def artifacts(self) -> Path:
        """The artifact store's folder."""
        return self.artifacts_path or self.state_path / "artifacts"

    @property
    def operator_key_path(self) -> Path:
        """Where a generated operator key is kept."""
        return self.state_path / "operator.key"

    @property
    def static_replicas(self) -> tuple[tuple[str, str], ...]:
        """(name, url) of every replica named in `replicas`."""
        return parse_replicas(self.replicas)

    def to_environment(self) -> dict[str, str]:
        """The environment variables that make the same settings in a child process; secrets in the clear."""
        plain = {name: getattr(self, name) for name in type(self).model_fields}
        return {
            PREFIX + name.upper(): value.get_secret_value() if isinstance(value, SecretStr) else str(value)
            for name, value in plain.items() if value is not None
        }

    def masked(self) -> dict[str, Any]:
        """Every setting as JSON-ready data, with secrets, and passwords in URLs, as stars."""
        shown = {name: _mask(name, getattr(self, name)) for name in type(self).model_fields}
        return {name: str(value) if isinstance(value, Path) else value for name, value in shown.items()}


def load(**given: Any) -> Settings:
    """Settings from `given` (those that are not None), then the environment, then the defaults; SettingsError."""
    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        raise SettingsError(_explain(error)) from None


def table() -> list[Row]:
    """Name, default and meaning of every setting, in the order of the README's table."""
    return [
        Row(PREFIX + name.upper(), "" if field.default is None else str(field.default), str(field.description))
        for name, field in Settings.model_fields.items()
    ]


def parse_replicas(text: str) -> tuple[tuple[str, str], ...]:
    """`a=http://h:1,b=unix:/p.sock` as (name, url) pairs; ValueError that says which part is wrong."""
    found: dict[str, str] = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        name, equals, url = part.partition("=")
        if not equals or not name or urlsplit(url).scheme not in _REPLICA_SCHEMES:
            raise ValueError(f"write {part!r} as name=http://host:port or name=unix:/path/to.sock")
        if name in found:
            raise ValueError(f"{name!r} is there twice; give each replica its own name")
        found[name] = url
    return tuple(found.items())


def _mask(name: str, value: Any) -> Any:
    if value is not None and name in _SECRET_NAMES:
        return "********"
    if name == "redis_url" and value is not None:
        return re.sub(r"(//[^/@]*):[^/@]*@", r"\1:********@", value)
    return value


def _explain(error: ValidationError) -> str:
    lines = []
    for problem in error.errors(include_url=False, include_context=False):
        name = str(problem["loc"][0]) if problem["loc"] else "settings"
        given = "" if name in _SECRET_NAMES | {"redis_url"} else f" (was {problem['input']!r})"
        lines.append(f"{PREFIX}{name.upper()}{given}: {problem['msg'].removeprefix('Value error, ')}.")
    return "\n".join(lines)
