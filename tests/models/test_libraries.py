"""A torchvision that does not fit torch: nothing but LPIPS and FID may fail by it."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run(code: str, folder: Path, torchvision: str | None) -> str:
    """Run code where torchvision, if any, is this module."""
    if torchvision is not None:
        package = folder / "torchvision"
        package.mkdir()
        (package / "__init__.py").write_text(torchvision)
        (package / "part.py").write_text("")
        info = folder / "torchvision-0.28.0.dist-info"  # by which transformers finds it
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: torchvision\nVersion: 0.28.0\n")
    path = [str(folder), str(ROOT)]
    command = [sys.executable, "-c", f"import sys; sys.path[:0] = {path!r}\n{code}"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


BROKEN = "from . import part\nraise RuntimeError('operator torchvision::nms does not exist')"
HIDDEN = """
from latentsync.models.libraries import hide_broken_torchvision
print(hide_broken_torchvision())
from importlib.util import find_spec
print(find_spec("torchvision") is None, "torchvision.part" in sys.modules, hide_broken_torchvision() == "")
"""


@pytest.mark.parametrize(
    ("torchvision", "wanted"),
    [
        (BROKEN, "operator torchvision::nms does not exist\nTrue False False"),
        ("raise OSError('libcudart.so.13')", "libcudart.so.13\nTrue False False"),
        ("raise AttributeError", "AttributeError\nTrue False False"),
        ("from . import part", "\nFalse True True"),
    ],
)
def test_a_torchvision_is_hidden_only_if_it_is_broken(tmp_path, torchvision, wanted):
    assert run(HIDDEN.lstrip(), tmp_path, torchvision) == wanted.strip()


def test_a_broken_torchvision_breaks_neither_models_nor_training(tmp_path):
    code = """
from latentsync.errors import UserError
from latentsync.models.perceptual import load_lpips
from latentsync.sampling import multistep
from latentsync.training.distributed import make_accelerator
from latentsync.training.unet.init import sd_unet
from latentsync.weights import vae_files

next(multistep("unipc", 2, "epsilon"))
print(make_accelerator("fp32", 1, cpu=True).num_processes, sd_unet({"unet.conv_in.weight": None}))
try:
    vae_files._build({}, 32)
except UserError as error:
    print(error)
from transformers import VideoMAEModel
try:
    load_lpips("vgg", "cpu")
except UserError as error:
    print(error)
"""
    plain, vae, lpips = run(code, tmp_path, BROKEN).splitlines()
    assert plain == "1 {'conv_in.weight': None}"
    assert vae.startswith("missing: ")  # an empty file, not a library
    assert "operator torchvision::nms does not exist" in lpips
    assert "built for torch" in lpips
    assert "--lpips off" in lpips
