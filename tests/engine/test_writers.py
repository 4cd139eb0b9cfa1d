"""Two writers of one path, cancelled or not: the file is one of theirs, whole, or the old one; nothing else is left."""

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import numpy as np
import pytest
import torch

from latentsync.cli.console import write_json
from latentsync.cli.contact_sheet import write_picture
from latentsync.files import atomic_path
from latentsync.media.image import read_image
from latentsync.media.probe import probe
from latentsync.media.reader import VideoReader
from latentsync.media.writer import VideoWriter
from latentsync.weights.files import read_tensors, write_safetensors

TRIES = 50


class CancelledError(Exception):
    pass


def write_video(path, shade, pause, cancel):
    with VideoWriter(path, 64, 48, Fraction(25)) as writer:
        for i in range(4):
            writer.write(np.full((48, 64, 3), shade, np.uint8))
            pause()
            if cancel and i == 2:
                raise CancelledError


def read_video(path):
    with VideoReader(probe(path)) as reader:
        frames = list(reader.read(range(reader.info.frames)))
    assert len(frames) == 4
    return {round(float(frame.mean()) / 50) * 50 for frame in frames}


def write_tensors(path, shade, pause, cancel):
    def on_progress(done, total):
        pause()
        if cancel and done > total / 2:
            raise CancelledError

    write_safetensors(path, {f"t{i}": torch.full((64,), float(shade)) for i in range(4)}, {}, on_progress=on_progress)


def read_weights(path):
    return {int(value) for tensor in read_tensors(path).values() for value in tensor.tolist()}


def write_text(path, shade, pause, cancel):
    with atomic_path(path) as part:
        for _ in range(4):
            with part.open("a") as file:
                file.write(f"{shade}\n")
            pause()
            if cancel:
                raise CancelledError


def read_text(path):
    lines = path.read_text().split()
    assert len(lines) == 4
    return {int(line) for line in lines}


def write_report(path, shade, pause, cancel):
    pause()
    if cancel:
        raise CancelledError
    write_json(path, {"shade": [shade] * 1000})


def write_sheet(path, shade, pause, cancel):
    pause()
    if cancel:
        raise CancelledError
    write_picture(path, np.full((64, 64, 3), shade, np.uint8))


KINDS = {
    "video": (".mp4", write_video, read_video),
    "weights": (".safetensors", write_tensors, read_weights),
    "any": (".txt", write_text, read_text),
    "report": (".json", write_report, lambda path: set(json.loads(path.read_text())["shade"])),
    "picture": (".png", write_sheet, lambda path: set(read_image(path).ravel().tolist())),
}


@pytest.mark.parametrize("kind", KINDS)
def test_two_writers_of_one_path(tmp_path, kind):
    suffix, write, read = KINDS[kind]
    path, barrier = tmp_path / f"out{suffix}", threading.Barrier(2)
    write(path, 0, lambda: None, False)

    def run(shade, cancel, patient):
        barrier.wait()
        try:
            write(path, shade, lambda: time.sleep(patient), cancel)
        except CancelledError:
            return False
        return True

    with ThreadPoolExecutor(2) as pool:
        for n in range(TRIES):
            jobs = [(100, n % 3 == 1, 0.002 * (n % 2)), (200, n % 4 == 2, 0.002 * (n % 5 == 0))]
            ended = [future.result() for future in [pool.submit(run, *job) for job in jobs]]
            allowed = {shade for (shade, _, _), whole in zip(jobs, ended, strict=True) if whole}
            found = read(path)
            assert len(found) == 1, "a mixture of both"
            assert not allowed or found <= allowed
            assert list(tmp_path.iterdir()) == [path], "nothing else is left"


def test_a_long_name_is_no_hindrance(tmp_path):
    path = tmp_path / ("é" * 120 + ".txt")
    with atomic_path(path) as part:
        part.write_text("x")
    assert path.read_text() == "x"
