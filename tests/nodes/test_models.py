"""MODEL, VAE and AUDIO_ENCODER are ComfyUI's own kinds: the engine's results, by ComfyUI's machinery, however it
shares out memory. Runs inside ComfyUI's Python."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from latentsync.audio.load import load_audio
from latentsync.training.unet.lora import merge_files, targets
from latentsync.weights.load import load_unet

from ..tiny import SHARED, pan, person_lora, taesd_files, tiny_checkpoint, tiny_vae
from ..training.parts import BASE, write_clips
from .clips import VOICE
from .server import ROOT, Installation

FRAMES = 20
"""Two windows, the second shifted back over the first."""
SETTINGS = {"steps": 2, "seed": 7, "guidance": 1.5}


def inside(comfyui: Installation, script: str, **job: Any) -> dict[str, Any]:
    """What a script of tests/nodes/scripts answers."""
    path = Path(__file__).with_name("scripts") / script
    asked = json.dumps({"root": str(ROOT), **job})
    known = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run(
        [str(comfyui.python), str(path), asked],
        cwd=comfyui.path,
        env=known | {"PYTHONPATH": str(path.parent)},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    answers = [line for line in done.stdout.splitlines() if line.startswith("ANSWER ")]
    assert answers, done.stdout[-2000:] + done.stderr[-4000:]
    return json.loads(answers[-1].removeprefix("ANSWER "))


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip") / "clip.npz"
    wave = load_audio(VOICE).waveform[: FRAMES * 640].numpy()
    np.savez(path, frames=np.stack(list(pan(FRAMES, 320, 280))), wave=wave)
    return path


@pytest.fixture(scope="module")
def nano(comfyui: Installation, clip: Path) -> dict[str, Any]:
    return inside(comfyui, "parts.py", clip=str(clip), checkpoint="nano", settings=SETTINGS, deep=True)


def test_the_sampler_equals_the_engine(nano):
    assert nano["latents"] < 1e-4
    assert nano["pictures"] <= 1


def test_every_layer_can_be_left_in_other_memory(nano):
    assert nano["not castable"] == []
    assert nano["left outside"] > 100
    assert nano["split"] < 1e-5
    assert nano["after"] < 1e-6


def test_half_precision_is_cast_for_a_device_without_it(nano):
    assert nano["half dtype"] == "torch.float16"
    assert nano["half"] < 1e-5  # nano's numbers are stored in fp16: cast up, they are the same


def test_a_lora_patches_the_model_split_or_whole(nano):
    assert nano["patches"] == 1
    assert nano["lora"] > 0.001
    assert nano["lora split"] < 1e-4


def test_a_long_clip_asks_for_no_more_memory_than_one_window(nano):
    needed = nano["memory"]
    assert needed["32"] == needed["320"] == needed["3200"] > needed["16"]


@pytest.mark.parametrize(
    ("prediction", "reference", "solver"),
    [
        ("epsilon", None, "ddim"),
        ("v_prediction", "first_frame", "dpm++"),
        ("sample", None, "unipc"),
        ("epsilon", None, "deis"),
    ],
)
def test_any_checkpoint_and_solver_equals_the_engine(comfyui, clip, tmp_path, prediction, reference, solver):
    path = tiny_checkpoint(tmp_path / "own.safetensors", prediction_type=prediction, reference_mode=reference)
    settings = {"steps": 4, "seed": 2, "guidance": 2.0, "solver": solver}
    job = {"clip": str(clip), "checkpoint": path.name, "folder": str(tmp_path), "settings": settings}
    found = inside(comfyui, "parts.py", **job)
    assert found["latents"] < 1e-3
    assert found["pictures"] <= 1


@pytest.mark.parametrize("mode", ["fast", "turbo"])
def test_modes_are_those_of_the_engine(comfyui, clip, tmp_path, mode):
    path = tiny_checkpoint(tmp_path / "own.safetensors", prediction_type="epsilon")
    settings = {"steps": 0, "seed": 2, "guidance": 0.0, "solver": "ddim", "mode": mode}
    job = {"clip": str(clip), "checkpoint": path.name, "folder": str(tmp_path), "settings": settings}
    assert inside(comfyui, "parts.py", **job)["latents"] < 1e-3


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a checkpoint to start from and three clips to train on."""
    folder = tmp_path_factory.mktemp("trained")
    tiny_checkpoint(folder / "base.safetensors")
    write_clips(folder / "data", 3)
    return folder


def trained(base: Path, name: str, **recipe: Any) -> Path:
    """What `latentsync train unet` leaves after two steps that change much, beside the checkpoint."""
    from typer.testing import CliRunner

    from latentsync.cli.main import app

    brief = BASE | {"learning_rate": 0.02, "steps": 2, "sample_clips": 0, "validate_windows": 1, "holdout_time": 0.0}
    weights = {"sync_weight": 0.0, "lpips": "off", "trepa_weight": 0.0}
    (base / f"{name}.yaml").write_text(json.dumps(brief | weights | recipe))  # JSON is YAML
    files = [base / "data", "--init", base / "base.safetensors", "--config", base / f"{name}.yaml", "-o", base / name]
    done = CliRunner().invoke(app, ["train", "unet", "--stage", "2", "--device", "cpu", *map(str, files)])
    assert done.exit_code == 0, done.output
    made = Path(done.stdout.splitlines()[-1])
    return made.rename(base / f"{name}.safetensors")


def test_a_lora_of_our_training_loads_by_comfyuis_own_node(comfyui, clip, base):
    """LoraLoaderModelOnly gives what the engine makes of the merged file."""
    lora = trained(base, "lora", lora=4)
    merge_files(str(base / "base.safetensors"), lora, base / "merged.safetensors")
    job = {"clip": str(clip), "checkpoint": "base.safetensors", "folder": str(base), "settings": SETTINGS}
    found = inside(comfyui, "parts.py", **job, lora=lora.name, merged="merged.safetensors")
    assert found["patches"] == len(targets(load_unet(base / "base.safetensors")))
    assert found["lora"] > 0.01
    assert found["latents"] < 1e-3
    assert found["pictures"] <= 1


@pytest.fixture(scope="module")
def person(base: Path) -> Path:
    """A model of one person for that checkpoint, of random numbers."""
    return person_lora(base / "me.safetensors", base / "base.safetensors", base="nano", resolution="64")


@pytest.mark.parametrize("strength", [1.0, 0.4])
def test_a_model_of_a_person_by_our_own_node_equals_the_engine(comfyui, clip, base, person, strength):
    """U-Net and VAE, to the picture that `latentsync run --lora` makes."""
    job = {"clip": str(clip), "checkpoint": "base.safetensors", "folder": str(base), "settings": SETTINGS}
    found = inside(comfyui, "parts.py", **job, person={person.name: strength})
    assert found["lora"] > 0.05
    assert found["latents"] < 1e-3
    assert found["pictures"] <= 1
    assert found["patches"] == 0  # merged, as the engine does it: nothing is patched at each run


def test_a_model_of_a_person_by_comfyuis_own_node_changes_the_unet(comfyui, clip, base, person):
    """Linear layers and convolutions alike. The VAE is out of its reach: its log names those keys."""
    merge_files(str(base / "base.safetensors"), person, base / "with_me.safetensors")
    job = {"clip": str(clip), "checkpoint": "base.safetensors", "folder": str(base), "settings": SETTINGS}
    found = inside(comfyui, "parts.py", **job, lora=person.name, merged="with_me.safetensors")
    assert found["patches"] == len(targets(load_unet(base / "base.safetensors"), everywhere=True))
    assert found["lora"] > 0.05
    assert found["latents"] < 1e-3


def test_a_checkpoint_of_our_training_loads_by_our_node(comfyui, clip, base):
    made = trained(base, "own")
    job = {"clip": str(clip), "checkpoint": made.name, "folder": str(base), "settings": SETTINGS}
    found = inside(comfyui, "parts.py", **job)
    assert found["latents"] < 1e-3
    assert found["pictures"] <= 1


@pytest.mark.parametrize(("vram", "cast"), [("LOW_VRAM", 0), ("NO_VRAM", 100)])
def test_low_memory_changes_nothing(comfyui, clip, vram, cast):
    found = inside(comfyui, "parts.py", clip=str(clip), checkpoint="nano", settings=SETTINGS, vram=vram)
    assert found["latents"] < 1e-4
    assert found["pictures"] <= 1
    assert found["cast"] >= cast


def check_looks(found: dict[str, Any], side: int) -> None:
    """No preview where ComfyUI is told so, the true picture where it is told so and can, the rough one else."""
    assert found["none"] == [None, None]
    for name in ("auto", "taesd"):
        assert found[name][0]["off"] < 3  # grey levels
        assert found[name][0]["size"] == [4 * side * 3 // 4, side]
        assert found[name][1] is None  # the second would take more of the time than previews may
    assert found["latent2rgb"][0] == found["latent2rgb"][1]


@pytest.mark.parametrize("weights", ["random", "real"])
def test_a_tiny_vae_fits_comfyuis_own(comfyui, tmp_path, weights):
    """nano's VAE may be TAESD: its LATENT is Stable Diffusion's, and previews of all such models come from it."""
    if weights == "real" and not (SHARED / "taesd").is_dir():
        pytest.skip("TAESD's two files are not beside the repository")
    taesd = SHARED / "taesd" if weights == "real" else taesd_files(tmp_path / "taesd", tiny_vae(width=64, seed=3))
    (tmp_path / "assets").mkdir()
    (tmp_path / "plain").mkdir()
    for path in (tmp_path / "own.safetensors", tmp_path / "assets" / "nano.safetensors"):
        tiny_checkpoint(path, taesd=True)
    tiny_checkpoint(tmp_path / "plain" / "nano.safetensors")
    picture = cv2.imread(str(ROOT / "latentsync" / "assets" / "portrait.jpg"))[:, :, ::-1]
    faces = [cv2.resize(picture, (128, 128)), cv2.resize(picture[:, ::-1], (128, 128))]
    np.save(tmp_path / "crops.npy", np.stack(faces * 3))
    job = {"folder": str(tmp_path), "checkpoint": "own.safetensors", "taesd": str(taesd)}
    job |= {"assets": str(tmp_path / "assets"), "plain": str(tmp_path / "plain")}
    found = inside(comfyui, "tiny_vae.py", **job, crops=str(tmp_path / "crops.npy"))
    for name in ("model", "1.5", "engine encodes", "rows kept", "theirs"):
        assert found[name] < 1e-4, name
    assert found["rows left out"] < 1e-6
    check_looks(found["with"], 128)
    assert found["without"]["none"] == [None, None]
    rough = found["without"]["latent2rgb"]
    assert found["without"]["auto"] == found["without"]["taesd"] == found["with"]["latent2rgb"] == rough
    assert found["nano"]["off"] < 3
