"""The commands of README and docs that take seconds are run as they stand, in a folder with the files that they name.

Only the model is another: a tiny one of random weights, one step. Why a command is not run here stands below, beside
the test that runs it; that it takes the words on the page is checked of every command (test_commands.py).
"""

import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from latentsync.cli import main as cli

from ..tiny import face_model, link, tiny_checkpoint, whisper_file, write_speech
from ..webapp.parts import clip, portrait
from .pages import ROOT, commands
from .test_commands import parse, told

FILM, PICTURE, SOUND, WEIGHTS, LIST = "film.mp4", "picture.png", "sound.wav", "weights.safetensors", "list.csv"
TAKEN = {"video": FILM, "image": PICTURE, "audio": SOUND, "file": WEIGHTS, "src": WEIGHTS, "jobs": LIST}
TAKEN |= {"made": FILM, "true": FILM, "clip": FILM}
"""What a command reads, by the names of its parameters."""
MODEL = ["--checkpoint", "tiny.safetensors", "--steps", "1"]
RUN = {
    "run": MODEL,
    "batch": MODEL[:2],
    "info": [],
    "convert": [],
    "doctor": [],
    "download": [],
    "compare": [],
    "measure": [],
    "faces": [],
}
"""Commands that are run, with what is added to them."""
NOT_HERE = {
    "speaker": "two people in one clip: tests/audio/test_speakers.py, tests/nodes/test_speakers.py",
    "vae": "weights that are not here: tests/models/test_vae.py",
    "ray_address": "a cluster: tests/batch/test_ray.py",
    "syncnet": "a trained SyncNet: tests/evaluation/test_eval.py",
    "lpips": "weights that are not ours: tests/evaluation/test_image_metrics.py",
    "lora": "a trained LoRA: tests/weights/test_lora.py, tests/training/test_personal.py",
    "names": "the network: tests/weights/test_download.py",
}
"""Parameters with which a command of RUN is left out."""
ELSEWHERE = {
    "personalize": "minutes, and a real face: tests/training/test_personal.py",
    "pairs": "a folder of clips: tests/evaluation/test_runs.py",
    "runs": "results of several runs: tests/evaluation/test_runs.py",
    "bench": "the built-in model, for minutes: tests/evaluation/test_bench.py",
    "app": "a server that runs on: tests/webapp/test_browser.py",
    "queue": "a ComfyUI: tests/nodes/test_queue.py, tests/workflows/test_workflows.py",
    "prepare": "footage and PySceneDetect: tests/prepare/test_run.py",
    "filelist": "prepared footage: tests/prepare/test_run.py",
    "sync": "a trained SyncNet: tests/evaluation/test_eval.py",
    "syncnet-accuracy": "a trained SyncNet: tests/evaluation/test_eval.py",
    "unet": "minutes to weeks: tests/training/test_trainer.py, tests/training/test_processes.py",
    "merge-lora": "a trained LoRA: tests/training/test_trainer.py",
    "recipe": "a configuration of the public project: tests/training/test_config.py",
    "charts": "a run to draw: tests/training/test_trainer.py",
    "distill": "minutes to days: tests/training/test_distill.py",
    "syncnet": "minutes to weeks: tests/training/test_syncnet_training.py",
}
"""Commands that are not run here: what they need, and the tests that run them."""


def every():
    """(as it stands in the page, name, parameters) of each command that is no mere mention, wherever it stands."""
    seen = {}
    for command in commands():
        words = told(command.words)
        if words and command.whole:
            context = parse(words)
            seen.setdefault(words, (command, context.info_name, context.params))
    return list(seen.values())


def runnable():
    return [
        (command, name, given)
        for command, name, given in every()
        if name in RUN and not any(given.get(parameter) for parameter in NOT_HERE)
    ]


def test_what_is_not_run_here_has_a_reason():
    left = {name for _, name, _ in every()} - set(RUN)
    assert left <= set(ELSEWHERE), "run these here, or say why not and where they are run"
    assert not set(ELSEWHERE) & set(RUN)
    for reason in (*NOT_HERE.values(), *ELSEWHERE.values()):
        for path in reason.split(": ")[1].split(", "):
            assert (ROOT / path).is_file(), reason


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    """A folder with one of each, and with what the tiny model needs."""
    folder = tmp_path_factory.mktemp("samples")
    clip(folder / FILM, 8)
    portrait(folder / PICTURE, width=160, height=140)
    write_speech(folder / SOUND, 0.4)
    tiny_checkpoint(folder / WEIGHTS)
    (folder / LIST).write_text(f"video,audio,out,steps\n{FILM},{SOUND},made.mp4,1\n", encoding="utf-8")
    link(folder / "face_landmarker.task", face_model())
    whisper_file(folder / "whisper-tiny.en.safetensors")
    return folder


def provide(source: Path, name: str) -> None:
    """The file that a command names, or the folder with one in it; not what is known by its name, such as 1.5."""
    path = Path(name)
    if path.exists() or (source.name == WEIGHTS and not path.suffix):
        return
    if not path.suffix:
        path.mkdir()
        path /= source.name
    shutil.copy(source, path)


@pytest.mark.parametrize(("command", "name", "given"), runnable(), ids=lambda value: str(value)[:90])
def test_it_runs(command, name, given, samples, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LATENTSYNC_MODELS", str(samples))
    for file in (FILM, SOUND):
        shutil.copy(samples / file, file)
    shutil.copy(samples / WEIGHTS, "tiny.safetensors")
    for parameter, file in TAKEN.items():
        if given.get(parameter):
            provide(samples / file, str(given[parameter]))
    before = set(tmp_path.iterdir())
    done = CliRunner().invoke(cli.app, [*told(command.words), *RUN[name]])
    assert done.exit_code == 0, f"{done.output}\n{done.stderr}"
    wanted = [given.get(key) for key in ("out", "report", "sheet", "picture", "dst")]
    for path in (Path(path) for path in wanted if path and str(path) != "-"):
        assert path.exists(), f"{path} was not made"
        assert path.is_dir() or path.stat().st_size
    assert len(set(tmp_path.iterdir()) - before) >= len({path for path in wanted if path and str(path) != "-"})
