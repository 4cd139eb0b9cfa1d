"""What is tried: each parser has inputs by number, and a way to read one."""

import json
import random
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from latentsync.errors import UserError

from . import mutate, seeds

Reader = Callable[[Path], Any]
FRAMES = 40  # of a video that are read at most


class Parser:
    """folder: for the input files. Only files that the reader opens by its own are left there."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder = name, folder / name
        self.folder.mkdir(parents=True, exist_ok=True)
        self.seeds: dict[str, bytes] = {}
        if name == "media":
            self.seeds = seeds.media()
        elif name == "checkpoints":
            made = self.folder / "seeds"
            made.mkdir(exist_ok=True)
            self.seeds = seeds.checkpoints(made)

    def make(self, number: int) -> Path:
        """The input of this number: the same on every machine with the same libraries."""
        rng = random.Random(f"{self.name}:{number}")
        suffix, data = MAKERS[self.name](self, rng)
        path = self.folder / f"{self.name}-{number}{suffix}"
        path.write_bytes(data)
        return path

    def read(self, path: Path) -> None:
        """Every reader gets its turn; each may refuse by UserError."""
        for reader in READERS[self.name]:
            with suppress(UserError):
                reader(path)


def _make_media(parser: Parser, rng: random.Random) -> tuple[str, bytes]:
    name = rng.choice(sorted(parser.seeds))
    return Path(name).suffix, mutate.damaged(rng, parser.seeds[name])


def _make_checkpoint(parser: Parser, rng: random.Random) -> tuple[str, bytes]:
    # the whole one is large, so it comes more rarely
    name = "whole.safetensors" if rng.random() < 0.1 else rng.choice(sorted(set(parser.seeds) - {"whole.safetensors"}))
    data, suffix = parser.seeds[name], Path(name).suffix
    is_header = suffix == ".safetensors" and rng.random() < 0.7
    return suffix, mutate.odd_safetensors(rng, data) if is_header else mutate.damaged(rng, data)


def _make_workflow(parser: Parser, rng: random.Random) -> tuple[str, bytes]:
    return ".json", mutate.odd_bytes(rng, seeds.WORKFLOW)


def _make_manifest(parser: Parser, rng: random.Random) -> tuple[str, bytes]:
    if rng.random() < 0.3:
        table = b"video,audio,out,steps\na.mp4,b.wav,c.mp4,4\nd.mp4,,,\n"
        return ".csv", mutate.damaged(rng, table)
    row = seeds.JOB if rng.random() < 0.5 else seeds.RECORD
    return ".jsonl", seeds.lines(row) + mutate.odd_bytes(rng, row) + b"\n"


def _make_journal(parser: Parser, rng: random.Random) -> tuple[str, bytes]:
    if rng.random() < 0.5:
        return ".json", mutate.odd_bytes(rng, [seeds.STEP, seeds.STEP])
    return ".jsonl", seeds.lines(seeds.RESULT) + mutate.odd_bytes(rng, seeds.RESULT)


def _read_video(path: Path) -> None:
    from latentsync.media.reader import VideoReader

    with VideoReader.open(path) as reader:
        for _ in reader.read(range(min(reader.info.frames, FRAMES))):
            pass


def _media_readers() -> list[Reader]:
    from latentsync.audio.load import load_audio
    from latentsync.media.image import is_animation, is_image, read_image
    from latentsync.media.probe import probe

    return [is_image, is_animation, read_image, probe, load_audio, _read_video]


def _checkpoint_readers() -> list[Reader]:
    from latentsync.weights.identify import identify
    from latentsync.weights.load import load_unet
    from latentsync.weights.syncnet_files import load_syncnet
    from latentsync.weights.vae_files import load_vae
    from latentsync.weights.whisper_files import load_whisper

    return [identify, load_unet, load_vae, load_syncnet, load_whisper]


def _read_workflow(path: Path) -> None:
    from latentsync.comfy_client import prompt
    from latentsync.comfy_client.inputs import describe, from_text

    found = prompt.read(path)
    fields = prompt.settable(found, seeds.INFO)
    prompt.missing(found, seeds.INFO)
    for field in fields:
        f"{field.name}{prompt.shown_value(found, field)}{describe(field)}".encode()
    prompt.refusals(found, seeds.INFO, seeds.ANSWER)
    from_text(path.read_text(encoding="utf-8", errors="replace"))
    for place, value in (("1.steps", path.read_text(encoding="utf-8", errors="replace")), ("1.format", "mp4")):
        with suppress(UserError):
            prompt.put_all(found, seeds.INFO, {place: value})
    json.dumps(found)


def _read_jobs(path: Path) -> None:
    from latentsync.batch.jobs import read_jobs

    read_jobs(path)


def _read_records(path: Path) -> None:
    from latentsync.dataset import MANIFEST, kept_clips

    path.replace(path.with_name(MANIFEST))
    try:
        kept_clips(path.parent)
    finally:
        path.with_name(MANIFEST).replace(path)


def _read_results(path: Path) -> None:
    from latentsync.batch.jobs import Job
    from latentsync.batch.results import ResultsLog
    from latentsync.settings import Settings

    log = ResultsLog(path)
    job = Job(1, path, None, path, Settings())
    for key in [*log.results, "ab"]:
        log.finished(job, key)
    log.add(seeds.RESULT | {"key": "cd", "out": "a\udc80.mp4"})


def _read_state(path: Path) -> None:
    from latentsync.prepare.steps import Step, resume_state
    from latentsync.prepare.workspace import Item

    steps = [Step("probe", lambda workspace, item, data: data, "damaged")] * 2
    workspace: Any = _NoWorkspace()
    item = Item("a", "a.mp4", key="ab")
    _, left = resume_state(steps, workspace, item, path.with_name("none.json"))
    text = path.read_text(encoding="utf-8", errors="replace")
    for _, key in left:  # the keys that this run wants
        text = text.replace('"key": "ab"', f'"key": "{key}"', 1)
    path.write_text(text, encoding="utf-8")
    outcome, _ = resume_state(steps, workspace, item, path)
    _ = outcome.data, outcome.rejected


class _NoWorkspace:
    class settings:
        skip = ()


MAKERS = {
    "media": _make_media,
    "checkpoints": _make_checkpoint,
    "workflow": _make_workflow,
    "manifest": _make_manifest,
    "journal": _make_journal,
}
READERS: dict[str, list[Reader]] = {}
NAMES = tuple(MAKERS)


def load_readers(names: list[str]) -> None:
    """Import what they need: before the memory is limited."""
    own: dict[str, Callable[[], list[Reader]]] = {
        "media": _media_readers,
        "checkpoints": _checkpoint_readers,
        "workflow": lambda: [_read_workflow],
        "manifest": lambda: [_read_jobs, _read_records],
        "journal": lambda: [_read_state, _read_results],
    }
    READERS.update({name: own[name]() for name in names})
    # those that the readers above import by themselves: on a busy machine this alone may take longer than an input may
    for module in ("comfy_client.prompt", "comfy_client.inputs", "batch.results", "dataset", "prepare.steps"):
        import_module(f"latentsync.{module}")
