"""Every knob: where it comes from, what is refused, and what is never shown."""

from pathlib import Path

import pytest

from gateway import settings
from gateway.settings import PREFIX, Settings, SettingsError, load, parse_replicas, table


@pytest.fixture(autouse=True)
def no_settings_around(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(PREFIX + name.upper(), raising=False)


def test_the_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWITCHYARD_PORT", "9000")
    assert load().port == 9000


def test_what_is_given_goes_before_the_environment_and_none_is_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWITCHYARD_PORT", "9000")
    assert load(port=9001, host=None).port == 9001
    assert load(port=None).port == 9000


def test_an_empty_variable_is_an_unset_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWITCHYARD_REDIS_URL", "")
    assert load().redis_url is None


def test_a_dot_env_file_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".env").write_text("SWITCHYARD_PORT=9000\n")
    monkeypatch.chdir(tmp_path)
    assert load().port == 8080


def test_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load().state_path == tmp_path / ".switchyard/state"
    assert load(artifacts_path="here").artifacts == tmp_path / "here"
    assert load().artifacts == tmp_path / ".switchyard/state/artifacts"


def test_settings_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load().port = 1


@pytest.mark.parametrize(("name", "value", "said"), [
    ("port", "eighty", "SWITCHYARD_PORT (was 'eighty')"),
    ("port", "70000", "less than or equal to 65535"),
    ("workers", "0", "SWITCHYARD_WORKERS"),
    ("redis_url", "http://localhost", "begin it with redis://"),
    ("registry", "a b", "use 1 to 64 letters"),
    ("replicas", "http://localhost:8000", "as name=http://host:port"),
    ("replicas", "a=http://h:1,a=http://h:2", "'a' is there twice"),
    ("log_level", "loud", "SWITCHYARD_LOG_LEVEL"),
])
def test_a_wrong_setting_is_named_and_the_message_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, said: str,
) -> None:
    monkeypatch.setenv(PREFIX + name.upper(), value)
    with pytest.raises(SettingsError) as error:
        load()
    assert PREFIX + name.upper() in str(error.value)
    assert said in str(error.value)


def test_every_wrong_setting_is_named_at_once() -> None:
    with pytest.raises(SettingsError, match=r"(?s)SWITCHYARD_PORT.*SWITCHYARD_WORKERS"):
        load(port="x", workers="y")


def test_a_password_is_in_no_message() -> None:
    with pytest.raises(SettingsError) as error:
        load(redis_url="http://:hunter2@host")
    assert "hunter2" not in str(error.value)


def test_secrets_are_shown_nowhere() -> None:
    given = load(operator_key="hunter2", replica_api_key="hunter2", secret="hunter2", metrics_key="hunter2",
                 redis_url="redis://user:hunter2@host:6379/0")
    assert "hunter2" not in repr(given)
    assert "hunter2" not in str(given.masked())
    assert given.masked()["redis_url"] == "redis://user:********@host:6379/0"


def test_every_secret_field_is_masked() -> None:
    secret = {name for name, field in Settings.model_fields.items() if "SecretStr" in str(field.annotation)}
    shown = load(**dict.fromkeys(secret, "hunter2")).masked()
    assert {shown[name] for name in secret} == {"********"}


def test_a_child_process_makes_the_same_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    given = load(port=9001, operator_key="k", replicas="a=unix:/s.sock", drain_seconds=0.5, state_path=tmp_path)
    for name, value in given.to_environment().items():
        monkeypatch.setenv(name, value)
    assert load() == given


def test_replicas_are_names_and_urls() -> None:
    assert parse_replicas(" a=http://h:1 , b=unix:/p.sock,") == (("a", "http://h:1"), ("b", "unix:/p.sock"))
    assert load(replicas="a=https://h").static_replicas == (("a", "https://h"),)


def test_the_table_has_every_setting_with_a_meaning() -> None:
    assert [row.name for row in table()] == [PREFIX + name.upper() for name in Settings.model_fields]
    assert all(row.meaning.endswith((".", "`.")) for row in table())
    assert settings.Row("SWITCHYARD_PORT", "8080", "Port to listen on; 0 takes a free one.") in table()
