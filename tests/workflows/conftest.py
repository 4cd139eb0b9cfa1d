"""The files that the example workflows name, in the shared server's input folder."""

from pathlib import Path

import pytest

from ..nodes.server import ComfyServer
from .api import media_folder
from .inputs import put_inputs


@pytest.fixture(scope="session")
def files(comfy: ComfyServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the input files lie. Real clips, or a portrait where there are none."""
    put_inputs(comfy, tmp_path_factory.mktemp("workflows"), media_folder())
    return comfy.input
