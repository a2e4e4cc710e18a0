"""Which models the learner of a test is started with."""

import pytest

BOTH_MODELS = pytest.mark.parametrize("shared_learner", [False, True], ids=["untied", "tied"], indirect=True)
