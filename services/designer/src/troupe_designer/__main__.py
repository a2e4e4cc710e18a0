"""Serves the designer: `python -m troupe_designer`, told by TROUPE_… variables what to run."""

from troupe_inference.launch import launch

from troupe_designer.prompt import PromptError
from troupe_designer.service import run
from troupe_designer.settings import DesignerSettings

if __name__ == "__main__":
    launch("designer", run(DesignerSettings.load()), PromptError)
