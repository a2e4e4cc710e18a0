"""The data folder is a folder: what is stored elsewhere is refused, not taken for one of that name."""

import pytest
from troupe_contracts.settings import SettingsError
from troupe_orchestrator.settings import OrchestratorSettings


def test_a_url_is_no_data_folder() -> None:
    with pytest.raises(SettingsError) as refused:
        OrchestratorSettings.read({"TROUPE_DATA_DIR": "s3://bucket/troupe"})
    assert "TROUPE_DATA_DIR is 's3://bucket/troupe'" in str(refused.value)
    assert "name a folder" in str(refused.value)
