"""The commands of README and docs that take seconds are run as they stand, in a folder with the files that they name.

Only the model is another: a tiny one of random weights, one step.
"""

import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from latentsync import cli

from ..app.parts import clip, portrait
from ..tiny import face_model, link, tiny_checkpoint, whisper_file, write_speech
from .pages import commands
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
}
"""Commands that are run, with what is added to them."""
NOT_HERE = {"ray", "ray_address", "split", "syncnet", "lpips", "fid_network", "names", "to"}
"""Parameters that need a cluster, the network or files that are not ours."""


def runnable():
    """(as it stands in the page, context): once each, wherever it stands."""
    seen = {}
    for command in commands():
        words = told(command.words)
        if words and command.whole and words[0] in ("run", "batch", "info", "convert", "doctor", "download", "eval"):
            context = parse(words)
            if context.info_name in RUN and not any(context.params.get(name) for name in NOT_HERE):
                seen.setdefault(words, (command, context.info_name, context.params))
    return list(seen.values())


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
