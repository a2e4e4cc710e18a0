"""What a service accepts from its environment, and how it says what it does not."""

from pathlib import Path

import pytest
from pydantic import Field
from troupe_contracts.settings import CommaSeparated, ServiceSettings, SettingsError, split_address


class EngineSettings(ServiceSettings):
    model: str = Field(description="folder or hub id of the model")
    context_length: int = Field(default=512, gt=0, description="tokens of prompt and reply, more than 0")
    sandbox: CommaSeparated = ()


def test_a_subclass_reads_its_own_and_the_common_variables() -> None:
    settings = EngineSettings.read(
        {
            "TROUPE_MODEL": "models/starter",
            "TROUPE_CONTEXT_LENGTH": "1024",
            "TROUPE_DIE_WITH_PARENT": "true",
            "TROUPE_READY_FILE": "/run/ready.json",
            "TROUPE_SANDBOX": "127.0.0.1:1, 127.0.0.1:2",
            "PATH": "/bin",
        }
    )
    assert settings.model == "models/starter"
    assert settings.context_length == 1024
    assert settings.die_with_parent
    assert settings.ready_file == Path("/run/ready.json")
    assert settings.sandbox == ("127.0.0.1:1", "127.0.0.1:2")
    assert settings.listen == "127.0.0.1:0"


def test_an_unknown_variable_is_refused_by_name_with_what_is_known() -> None:
    with pytest.raises(SettingsError) as caught:
        EngineSettings.read({"TROUPE_MODEL": "m", "TROUPE_CONTEXT_LENGHT": "1", "TROUPE_ZZZ": ""})
    first, second = caught.value.problems
    assert "TROUPE_CONTEXT_LENGHT is not known" in first
    assert "did you mean TROUPE_CONTEXT_LENGTH?" in first
    assert "TROUPE_ZZZ" in second
    assert "TROUPE_MODEL" in second


def test_every_invalid_value_is_named_with_what_is_wanted() -> None:
    with pytest.raises(SettingsError) as caught:
        EngineSettings.read({"TROUPE_CONTEXT_LENGTH": "0", "TROUPE_LISTEN": "somewhere", "TROUPE_UNREAD": "1"})
    text = str(caught.value)
    assert "TROUPE_UNREAD is not known" in text
    assert "TROUPE_MODEL is not set" in text
    assert "folder or hub id of the model" in text
    assert "TROUPE_CONTEXT_LENGTH is '0'" in text
    assert "TROUPE_LISTEN is 'somewhere'" in text
    assert "host:port" in text


def test_loading_bad_settings_exits_with_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        ServiceSettings.load({"TROUPE_DRAIN_SECONDS": "-1"})
    assert caught.value.code == 2
    assert "TROUPE_DRAIN_SECONDS is '-1'" in capsys.readouterr().err


def test_constructed_settings_ignore_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TROUPE_LISTEN", "127.0.0.1:9")
    assert ServiceSettings().listen == "127.0.0.1:0"


@pytest.mark.parametrize("address", ["", ":1", "host", "host:", "host:x", "host:70000", "host:-1"])
def test_what_is_not_an_address_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match="host:port"):
        split_address(address)


def test_an_address_of_ip_version_6_is_split() -> None:
    assert split_address("[::1]:80") == ("::1", 80)


OUTSIDE = ("0.0.0.0:0", "[::]:0", "10.0.0.7:50051", "executor-0:50051")


@pytest.mark.parametrize("address", ["127.0.0.1:1", "127.8.8.8:1", "localhost:1", "[::1]:1"])
def test_loopback_needs_no_credentials(address: str) -> None:
    assert ServiceSettings(listen=address, metrics=address).warnings() == []


@pytest.mark.parametrize("address", OUTSIDE)
@pytest.mark.parametrize("variable", ["TROUPE_LISTEN", "TROUPE_METRICS"])
def test_an_address_that_others_reach_is_refused_without_credentials(address: str, variable: str) -> None:
    with pytest.raises(SettingsError) as caught:
        ServiceSettings.read({variable: address})
    assert f"{variable}={address} can be reached from other machines" in str(caught.value)
    assert "set TROUPE_TOKENS" in str(caught.value)


@pytest.mark.parametrize("address", OUTSIDE)
def test_it_is_taken_with_tokens_with_certificates_or_with_a_word_and_what_is_not_safe_is_said(address: str) -> None:
    listen = {"TROUPE_LISTEN": address}
    tls = {"TROUPE_TLS_CERT": "c", "TROUPE_TLS_KEY": "k"}
    (tokens,) = ServiceSettings.read(listen | {"TROUPE_TOKENS": "t"}).warnings()
    (insecure,) = ServiceSettings.read(listen | {"TROUPE_INSECURE": "true"}).warnings()
    assert "plain text" in tokens
    assert "TROUPE_INSECURE lets everyone" in insecure
    assert ServiceSettings.read(listen | tls | {"TROUPE_TLS_CA": "a"}).warnings() == []
    assert ServiceSettings.read(listen | tls | {"TROUPE_TOKENS": "t"}).warnings() == []
    with pytest.raises(SettingsError, match="anyone could call"):  # encrypted, and from anyone
        ServiceSettings.read(listen | tls)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"TROUPE_TLS_CERT": "c"}, "come together"),
        ({"TROUPE_TLS_KEY": "k"}, "come together"),
        ({"TROUPE_TLS_CA": "a"}, "without TROUPE_TLS_CERT"),
        ({"TROUPE_TLS_SERVER_NAME": "n"}, "without TROUPE_TLS_CA"),
        ({"TROUPE_INSECURE": "true"}, "only loopback is listened on"),
        ({"TROUPE_INSECURE": "true", "TROUPE_LISTEN": "0.0.0.0:0", "TROUPE_TOKENS": "t"}, "asked for credentials"),
    ],
)
def test_credentials_that_would_not_be_used_are_refused(settings: dict[str, str], complaint: str) -> None:
    with pytest.raises(SettingsError, match=complaint):
        ServiceSettings.read(settings)


def test_with_tokens_the_authority_is_for_the_services_own_calls() -> None:
    files = {"tls_cert": Path("c"), "tls_key": Path("k"), "tls_ca": Path("a")}
    assert ServiceSettings.model_validate(files).asks_for_certificates
    assert not ServiceSettings.model_validate(files | {"tokens": Path("t")}).asks_for_certificates
