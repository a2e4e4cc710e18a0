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
