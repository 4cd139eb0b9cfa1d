"""Tar files of clips: their form, and that training on them takes the same batches as on files."""

import json
import tarfile

import numpy as np
import pytest
import torch

from latentsync import dataset
from latentsync.dataset import MANIFEST, find_clips, read_manifest
from latentsync.errors import UserError
from latentsync.prepare.shards import _groups, write_shards
from latentsync.training.dataset import ClipDataset, ClipStore, IndexSampler, load_batches, split_clips
from latentsync.training.unet.data import UNetWindows

from ..tiny import tiny_whisper
from .parts import SIDE, recipe, write_clips


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = write_clips(tmp_path_factory.mktemp("prepared") / "data", 5)
    for path in (folder / "clips").glob("c[0-2].mp4"):
        np.savez(path.with_suffix(".npz"), opening=np.arange(60.0))
    return folder


@pytest.fixture(autouse=True)
def nothing_unpacked(monkeypatch):
    monkeypatch.setattr(dataset, "_unpacked", dataset._Unpacked())


def kept(folder):
    return [record for record in read_manifest(folder) if record["status"] == "kept"]


def test_every_file_is_in_a_tar_as_it_was(data):
    sizes = [(data / record["path"]).stat().st_size for record in kept(data)]
    tars = write_shards(data, kept(data), 1)
    assert len(tars) == 1  # five clips are less than a megabyte
    assert sum(sizes) < 10**6
    with tarfile.open(tars[0]) as tar:
        names = tar.getnames()
        assert names[:3] == [
            "c0.mp4",
            "c0.npz",
            "c0.json",
        ]  # side by side, as WebDataset wants it
        for name in (n for n in names if not n.endswith(".json")):
            assert tar.extractfile(name).read() == (data / "clips" / name).read_bytes()
        assert json.loads(tar.extractfile("c4.json").read())["source"] == "film4"


def test_tars_are_filled_in_order_and_reproducible(data):
    limit = sum((data / record["path"]).stat().st_size for record in kept(data)[:2]) + 3000
    groups = list(_groups(data, kept(data), limit))
    assert [len(group) for group in groups] == [2, 2, 1]
    first = [path.read_bytes() for path in write_shards(data, kept(data), 1)]
    assert [path.read_bytes() for path in write_shards(data, kept(data), 1)] == first
    with pytest.raises(UserError, match="--shards"):
        write_shards(data, kept(data), 0)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_same_batches_as_on_files(data, workers):
    write_shards(data, kept(data), 1)
    batches = []
    for place in (data, data / "shards"):
        chosen = recipe("1")
        split = split_clips(find_clips(place), chosen)
        make = UNetWindows(ClipStore(place / "cache", SIDE, tiny_whisper()), mel=True)
        loaded = load_batches(ClipDataset(split.train, make, chosen.seed), IndexSampler(0, 2), workers)
        batches.append([next(loaded) for _ in range(3)])
    for one, other in zip(*batches, strict=True):
        assert one.keys() == other.keys()
        assert not any([*one["bad"], *other["bad"]])
        for name, value in one.items():
            assert torch.equal(value, other[name]) if isinstance(value, torch.Tensor) else value == other[name]


def test_what_is_unpacked_is_bounded_and_found_again(data, monkeypatch):
    monkeypatch.setattr(dataset._Unpacked, "KEPT", 2)
    write_shards(data, kept(data), 1)
    clips = find_clips(data / "shards")
    for clip in [*clips, *clips]:
        assert clip.file().read_bytes() == (data / "clips" / clip.path.name).read_bytes()
        assert len(list(clip.file().parent.iterdir())) <= 2
    assert clips[0].file(".npz").is_file()
    assert not clips[4].file(".npz").is_file()
    assert clips[0].identity() != clips[1].identity()


def test_a_cut_tar_is_a_bad_clip_and_a_damaged_manifest_an_error(data):
    (tar,) = write_shards(data, kept(data), 1)
    clips = find_clips(data / "shards")
    whole = tar.read_bytes()
    tar.write_bytes(whole[: len(whole) // 3])
    with pytest.raises(UserError, match="copy it again"):
        clips[-1].file()
    manifest = data / "shards" / MANIFEST
    record = json.loads(manifest.read_text().splitlines()[0])
    for members in ([1], {".mp4": 3}, {".mp4": [0, -1]}, {".mp4": [0, "x"]}):
        manifest.write_text(json.dumps(record | {"members": members}) + "\n")
        with pytest.raises(UserError, match="damaged"):
            find_clips(data / "shards")
