"""The command line: defaults, help, exit codes, what it prints; the doctor; the contact sheet."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import torch
import typer
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from skimage import data
from typer.testing import CliRunner

from latentsync.cli import doctor
from latentsync.cli import main as cli
from latentsync.cli.contact_sheet import Curve, compose, evenly, write_picture
from latentsync.cli.imports import try_all
from latentsync.errors import UnfinishedError, UserError
from latentsync.models.device import pick_dtype, short_name
from latentsync.settings import Settings
from latentsync.weights import registry
from latentsync.weights.identify import identify

from ..tiny import face_model, find_model, link, tiny_checkpoint

ROOT = Path(__file__).resolve().parents[2]
VOICE = ROOT / "latentsync" / "assets" / "voice.flac"
COMMANDS = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]
NOT_SETTINGS = {
    "out": None,
    "video": None,
    "image": None,
    "audio": None,
    "audio_track": -1,
    "speaker": None,
    "start": None,
    "duration": None,
    "json": None,
    "sheet": None,
    "timeline": None,
    "cache": None,
    "lora": None,
    "checkpoint": "nano",
    "resolution": None,
    "vae": None,
    "whisper": None,
    "device": "auto",
    "dtype": "auto",
    "steps": None,  # the checkpoint's
    "guidance": None,
}


def call(*words: object):
    return CliRunner().invoke(cli.app, [str(word) for word in words])


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "tiny.safetensors")


@pytest.fixture(scope="session")
def face_png(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("face") / "face.png"
    cv2.imwrite(str(path), np.ascontiguousarray(data.astronaut()[0:256, 96:352, ::-1]))
    return path


@pytest.fixture
def models(monkeypatch, tmp_path) -> Path:
    """A model folder with everything that nano needs beside its own file, else the test is skipped, saying so."""
    folder = tmp_path / "models"
    folder.mkdir()
    whisper = find_model("tiny.en")
    if whisper is None:
        pytest.skip("whisper-tiny.en is not in LATENTSYNC_MODELS; `make test` fetches it")
    for path in (whisper, face_model()):
        link(folder / path.name, path)
    monkeypatch.setenv("LATENTSYNC_MODELS", str(folder))
    return folder


# --- the words -----------------------------------------------------------------------------------------------------


def test_defaults_are_those_of_settings():
    shown = {option.name: option.default for option in COMMANDS["run"].params}
    wanted = {field.name: field.default for field in fields(Settings) if field.name not in NOT_SETTINGS}
    assert {name: shown[name] for name in wanted} == wanted
    rest = {name: value for name, value in shown.items() if name not in wanted}
    assert {name: rest[name] or None for name in NOT_SETTINGS} == NOT_SETTINGS
    assert set(rest) == set(NOT_SETTINGS)


@pytest.mark.parametrize("command", COMMANDS)
def test_everything_is_explained(command):
    for option in COMMANDS[command].params:
        assert len(option.help or "") > 8, option.name  # type: ignore[union-attr]
    help_page = call(command, "--help")
    assert help_page.exit_code == 0
    assert len(COMMANDS[command].help) > 80


def test_help_is_quick():
    code = (
        "from latentsync.cli.main import app\ntry: app(['run', '--help'])\nfinally:\n import sys; print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert "--guidance" in done.stdout
    assert not {"torch", "numpy", "cv2", "av", "transformers"} & set(done.stdout.splitlines()[-1].split())


def test_version():
    stated = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'version = "{call("--version").stdout.strip()}"' in stated


# --- run -----------------------------------------------------------------------------------------------------------


def test_run_takes_the_steps_that_the_checkpoint_asks_for(models, tiny, face_png, tmp_path):
    own = tmp_path / "own.safetensors"
    state = load_file(tiny)
    with safe_open(tiny, "pt") as file:
        save_file(state, own, file.metadata() | {"default_steps": "2", "default_guidance": "1.0"})
    video = tmp_path / "out.mp4"
    words = ["run", "--image", face_png, "--audio", VOICE, "--out", video, "-c", own, "--json", "-"]
    took = json.loads(call(*words).stdout)["settings"]
    assert (took["steps"], took["guidance"]) == (2, 1.0)
    took = json.loads(call(*words, "--steps", 1).stdout)["settings"]
    assert (took["steps"], took["guidance"]) == (1, 1.0)


def test_run_reports_what_it_did(models, tiny, face_png, tmp_path):
    out, sheet = tmp_path / "out.mp4", tmp_path / "sheet.png"
    voice = tmp_path / "voice.wav"
    with av.open(str(VOICE)) as source, av.open(str(voice), "w") as target:
        stream = target.add_stream("pcm_s16le", rate=16_000, layout="mono")
        for frame in source.decode(audio=0):
            frame.pts = None
            target.mux(stream.encode(frame))
            if frame.time and frame.time > 0.6:
                break
        target.mux(stream.encode(None))
    result = call(
        "run", "--image", face_png, "--audio", voice, "--out", out, "--checkpoint", tiny, "--steps", 2, "--seed", 5,
        "--json", "-", "--sheet", sheet,
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["settings"]["steps"] == 2
    assert report["settings"]["seed"] == 5
    assert report["frames"] == report["repainted"] > 10
    assert (report["fps"], report["size"], report["resolution"]) == ("25", [256, 256], 64)
    assert report["dtype"] == short_name(pick_dtype("auto", report["device"]))
    assert {"load", "track", "crop", "encode", "hear", "sample", "decode", "paste", "write"} <= set(report["timings"])
    assert str(out) in result.stderr
    picture = cv2.imread(str(sheet))
    assert picture.shape == (2 * 160 + 150 if report["frames"] <= 16 else 3 * 160 + 150, 8 * 160, 3)
    assert {path.name for path in tmp_path.iterdir()} == {"models", "voice.wav", "out.mp4", "sheet.png"}


@pytest.mark.skipif(sys.platform == "win32", reason="no such signals")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_leaves_nothing(models, tiny, face_png, tmp_path, number, code):
    out = tmp_path / "out.mp4"
    words = ["run", "--image", face_png, "--audio", VOICE, "--out", out, "--checkpoint", tiny, "--steps", "1000"]
    command = [sys.executable, "-c", "from latentsync.cli.main import main; main()", *map(str, words)]
    # a job in a shell's background ignores Ctrl-C and so would its children: this one must hear it
    listen = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, preexec_fn=listen) as process:
        try:
            while process.poll() is None and not list(tmp_path.glob(".out.mp4.*.part")):
                time.sleep(0.1)
            process.send_signal(number)
            _, errors = process.communicate(timeout=120)
        finally:
            process.kill()
    assert process.returncode == code, errors
    assert "Traceback" not in errors
    assert number == signal.SIGTERM or errors.endswith("the same command continues from there\n")
    assert not list(tmp_path.glob("*out*"))


KEEP_WORK = {
    ("run",),
    ("batch",),
    ("prepare",),
    ("download",),
    ("personalize",),
    ("train", "unet"),
    ("train", "syncnet"),
    ("train", "distill"),
}


def paths(group, *before):
    for name, command in group.commands.items():
        yield from paths(command, *before, name) if hasattr(command, "commands") else [(*before, name)]


@pytest.mark.parametrize("path", paths(typer.main.get_command(cli.app)), ids=" ".join)
def test_what_ctrl_c_leaves_is_said_truly(path, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    command = root = typer.main.get_command(cli.app)
    for name in path:
        command = command.commands[name]
    monkeypatch.setattr(command, "parse_args", lambda *_: [])
    monkeypatch.setattr(command, "invoke", interrupted)
    assert root.main([*path], prog_name="python -m latentsync", standalone_mode=False) == 130
    kept = "finished work is kept, and the same command continues from there"
    assert capsys.readouterr().err == f"interrupted; {kept if path in KEEP_WORK else 'no partial files were left'}\n"


# --- files ---------------------------------------------------------------------------------------------------------


def test_info(tiny):
    result = call("info", tiny)
    assert result.exit_code == 0
    assert "LatentSync nano U-Net and VAE for 64 px" in result.stdout
    facts = json.loads(call("info", tiny, "--json").stdout)
    assert (facts["kind"], facts["resolution"], facts["prediction_type"]) == ("nano", 64, "sample")


@pytest.mark.parametrize(
    ("content", "words"), [(b"<!DOCTYPE html><html>", "web page"), (b"hello", ""), (None, "none.pt")]
)
def test_info_of_something_else(tmp_path, content, words):
    path = tmp_path / "none.pt"
    if content is not None:
        path.write_bytes(content)
    result = call("info", path)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert words in result.stderr


def test_download_lists_what_there_is(monkeypatch, tmp_path):
    monkeypatch.setenv("LATENTSYNC_MODELS", str(tmp_path / "none"))
    result = call("download")
    assert result.exit_code == 0
    for entry in registry.ENTRIES:
        line = next(line for line in result.stdout.splitlines() if line.startswith(entry.name + " "))
        assert entry.license in line
        assert entry.size in line or entry.built_in
    assert str(tmp_path / "none") in result.stdout
    assert not list(tmp_path.iterdir())


def test_download_names_are_checked_before_anything_is_fetched(tmp_path):
    result = call("download", "face-landmarker", "gpt", "--to", tmp_path / "here")
    assert result.exit_code == 2
    assert "gpt" in result.stderr
    assert not list(tmp_path.iterdir())


def test_download_keeps_what_is_there(models):
    result = call("download", "face_landmarker.task", "--to", models)
    assert result.stdout.strip() == f"face-landmarker: {models / 'face_landmarker.task'}"


def test_convert(tiny, tmp_path):
    target = tmp_path / "half.safetensors"
    result = call("convert", tiny, target, "--dtype", "fp16", "--version", "mine", "--resolution", 128)
    assert (result.exit_code, result.stdout.strip()) == (0, str(target)), result.stderr
    found = identify(target)
    assert (found.kind, found.dtype, found.version, found.resolution) == ("nano", "float16", "mine", 128)
    assert call("convert", tiny, tmp_path / "a.pt").exit_code == 2


@pytest.mark.parametrize(("error", "code"), [(UserError, 2), (UnfinishedError, 1)])
def test_exit_codes_of_errors(monkeypatch, error, code):
    def end(*_: object, **__: object) -> None:
        raise error("what was got,\nand what to do")

    monkeypatch.setattr("latentsync.cli.train._use_free_cores", lambda *_, **__: None)  # says what the machine is at
    monkeypatch.setattr("latentsync.training.unet.run.run_unet", end)
    result = call("train", "unet", "data")
    assert (result.exit_code, result.stdout) == (code, "")
    assert result.stderr == "error: what was got, and what to do\n"


# --- doctor --------------------------------------------------------------------------------------------------------


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the doctor went to the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def quick(monkeypatch):
    """Without imports in another process, which take seconds."""
    monkeypatch.setattr(doctor, "try_all", lambda modules: ((name, "") for name in modules))


def test_doctor_on_a_bare_machine(no_network, quick, monkeypatch, tmp_path):
    monkeypatch.setenv("LATENTSYNC_MODELS", str(tmp_path / "none"))
    result = call("doctor")
    assert result.exit_code == 1
    assert "→ needed: latentsync download nano" in result.stdout
    assert "→ for LatentSync 1.6: latentsync download 1.6" in result.stdout
    assert "not ready" in result.stdout.splitlines()[-1]
    assert not list(tmp_path.iterdir())
    checks = {check["name"]: check for check in json.loads(call("doctor", "--json").stdout)["checks"]}
    assert checks["whisper-tiny.en"]["state"] == "missing"
    assert checks["1.5"]["state"] == "note"
    assert "5.07 GB" in checks["1.5"]["detail"]
    assert {"Python", "torch", "av", "mediapipe", "opencv", "transformers", "diffusers", "disk"} <= set(checks)


def test_doctor_where_all_is_well(no_network, models, tiny, monkeypatch, tmp_path):
    assets = tmp_path / "assets"
    assets.mkdir()
    link(assets / registry.NANO_FILE, tiny)
    monkeypatch.setattr(registry, "ASSETS", assets)
    result = call("doctor", "--json")
    found = json.loads(result.stdout)
    assert [check for check in found["checks"] if check["state"] == "missing"] == []
    assert (result.exit_code, found["ready"]) == (0, True)
    mediapipe = next(check for check in found["checks"] if check["name"] == "mediapipe")
    assert "starts" in mediapipe["detail"]


def test_doctor_sees_a_file_that_is_cut_off(quick, models):
    (models / "face_landmarker.task").unlink()
    (models / "face_landmarker.task").write_bytes(b"PK")
    check = next(check for check in doctor.examine() if check.name == "face-landmarker")
    assert check.state == "missing"
    assert "2 bytes where 3,758,596 are right" in check.detail


def test_doctor_counts_opencv_packages(quick, monkeypatch):
    class Wheel:
        def __init__(self, name: str) -> None:
            self.metadata = {"Name": name}

    wheels = [Wheel("opencv-python"), Wheel("opencv_contrib_python"), Wheel("numpy")]
    monkeypatch.setattr(doctor, "distributions", lambda: wheels)
    check = next(check for check in doctor.examine() if check.name == "opencv")
    assert check.state == "note"
    assert "pip uninstall opencv-python opencv_contrib_python" in check.fix


@pytest.mark.parametrize(
    ("reason", "fix"),
    [
        ("libEGL.so.1: cannot open shared object file: No such file or directory", "apt-get install libegl1 libgles2"),
        ("libGL.so.1: cannot open shared object file: No such file or directory", "apt-get install libgl1"),
        ("No module named 'av'", "pip install -r requirements.txt"),
    ],
)
def test_doctor_knows_what_is_missing(reason, fix):
    def broken() -> str:
        raise ImportError(reason)

    check = doctor._importable("rich", broken)
    assert (check.state, check.fix, check.needed) == ("missing", fix, True)


def test_doctor_imports_what_it_reports(monkeypatch, tmp_path):
    (tmp_path / "part_fine.py").write_text("print('noise')")
    (tmp_path / "part_broken.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    (tmp_path / "part_fatal.py").write_text("import os\nos.abort()")
    monkeypatch.syspath_prepend(str(tmp_path))
    modules = {"a": ["part_fine"], "b": ["part_fine", "part_broken"], "c": ["part_fatal"], "d": ["part_fine"]}
    assert dict(try_all(modules)) == {
        "a": "",
        "b": "part_broken: operator torchvision::nms does not exist",
        "c": "importing part_fatal crashes Python",
        "d": "",
    }


def test_doctor_on_extras(monkeypatch):
    numbers = {"torchvision": "0.28.0", "torchmetrics": "1.9.0", "torch-fidelity": "0.4.0", "ray": "2.60.0"}
    monkeypatch.setattr(doctor, "_version", lambda package: numbers.get(package, ""))
    broken = doctor._extra("eval", {"eval": "torchvision: operator torchvision::nms does not exist"})
    assert (broken.state, broken.needed) == ("note", False)
    assert "nms" in broken.detail
    assert f"built for torch {torch.__version__}" in broken.fix
    whole, absent = doctor._extra("ray", {"ray": ""}), doctor._extra("app", {"app": ""})
    assert (whole.state, whole.detail) == ("ok", "ray 2.60.0")
    assert absent.fix == 'pip install "streamlit>=1.52"'
    said = list(doctor.advice([broken, whole, absent]))
    assert any(line.startswith("extra eval: ") for line in said)
    assert not any("extra app" in line for line in said)  # an offer, no fault


def test_doctor_knows_every_extra():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for name, packages in doctor.EXTRAS.items():
        (line,) = (line for line in text.splitlines() if line.startswith(f"{name} = ["))
        listed = set(re.findall(r'"([a-z-]+)', line)) - {"torch"}
        assert set(packages) == listed


# --- sheet ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("total", "wanted"), [(1, 24), (5, 24), (24, 24), (25, 24), (1000, 24)])
def test_evenly(total, wanted):
    picked = evenly(total, wanted)
    assert picked[0] == 0
    assert len(picked) == len(set(picked)) == min(total, wanted)
    assert picked == sorted(picked)
    assert picked[-1] >= total - 1 - total // wanted


def test_sheet_shows_tiles_and_curves():
    tiles = [np.full((40, 40, 3), 10 * i, np.uint8) for i in range(5)]
    opening = np.array([0.0, 0.1, np.nan, np.nan, 0.05, 0.0])
    curves = [
        Curve("loudness", np.linspace(-50, -10, 6), -60, 0, (150, 170, 200)),
        Curve("mouth opening", opening, 0, 0.1, (200, 60, 50)),
    ]
    sheet = compose(tiles, [0.0, 0.2, 0.4, 0.6, 0.8], curves, 1.0, columns=3)
    assert sheet.shape == (80 + 150, 120, 3)
    assert (sheet[2, 82] == 20).all()
    red = (sheet == (200, 60, 50)).all(-1)
    columns = np.flatnonzero(red.any(0))
    assert columns.min() <= 12
    assert columns.max() >= 108
    assert not red[:, 45:70].any(), "nothing is drawn where the mouth was not seen"
    assert compose(tiles, [0.0] * 5, [], 1.0, columns=3).shape == (80, 120, 3)


def test_picture_is_written_whole_or_not_at_all(tmp_path):
    write_picture(tmp_path / "a.png", np.full((4, 4, 3), (255, 0, 0), np.uint8))
    assert (cv2.imread(str(tmp_path / "a.png"))[0, 0] == (0, 0, 255)).all()
    (tmp_path / "b.png").mkdir()
    with pytest.raises(UserError, match="could not be written"):
        write_picture(tmp_path / "b.png", np.zeros((4, 4, 3), np.uint8))
    assert {path.name for path in tmp_path.iterdir()} == {"a.png", "b.png"}
    assert os.listdir(tmp_path / "b.png") == []  # noqa: PTH208


def test_debug_shows_where_an_error_comes_from(tmp_path):
    """Without it one sentence; with it the traceback as well, and what the engine does."""
    words = ["run", "--image", "none.png", "--audio", "none.wav", "--out", str(tmp_path / "out.mp4")]
    command = [sys.executable, "-m", "latentsync"]
    plain = subprocess.run([*command, *words], cwd=ROOT, capture_output=True, text=True, check=False)
    told = subprocess.run([*command, "--debug", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert plain.returncode == told.returncode == 2
    assert "Traceback" not in plain.stderr
    assert "Traceback" in told.stderr
    assert told.stderr.splitlines()[-1] == plain.stderr.splitlines()[-1]
