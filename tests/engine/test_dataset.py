"""Reading prepared folders and file lists: one rule for paths, nothing remembered from an earlier run of `prepare`."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from latentsync.dataset import clip_files, find_clips, holdout_part, kept_clips, read_manifest
from latentsync.errors import UserError


def write_manifest(folder: Path, records: list[dict]) -> None:
    (folder / "manifest.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")


def record(name: str, source: str, **more) -> dict:
    return {"id": name, "source": source, "status": "kept", "path": f"clips/{name}.mp4", "margin": 8} | more


@pytest.fixture
def prepared(tmp_path) -> Path:
    """Three clips that were kept, out of the order of their names, and one that was dropped."""
    folder = tmp_path / "prepared"
    (folder / "clips").mkdir(parents=True)
    records = [record("b", "anna/1.mp4"), record("a", "ben/1.mp4"), record("c", "ben/2.mp4")]
    for one in records:
        (folder / one["path"]).touch()
    write_manifest(folder, [*records, record("d", "ben/3.mp4", status="dropped", path=None, margin=None)])
    return folder


def test_a_prepared_folder_gives_what_was_kept_in_the_manifests_order(prepared):
    clips = find_clips(prepared)
    assert clips == kept_clips(prepared)
    assert [(c.path, c.source, c.margin) for c in clips] == [
        (prepared / "clips/b.mp4", "anna/1.mp4", 8),
        (prepared / "clips/a.mp4", "ben/1.mp4", 8),
        (prepared / "clips/c.mp4", "ben/2.mp4", 8),
    ]


def test_a_clip_is_the_same_wherever_its_path_comes_from(prepared, tmp_path, monkeypatch):
    """From the folder, a list, the folder of clips, or its own path, also a relative one."""
    wanted = {clip.path: clip for clip in find_clips(prepared)}
    (tmp_path / "list.txt").write_text("".join(f"{path}\n" for path in wanted))
    assert find_clips(tmp_path / "list.txt") == list(wanted.values())
    assert find_clips(prepared / "clips") == sorted(wanted.values(), key=lambda clip: clip.path)
    monkeypatch.chdir(prepared / "clips")
    (clip,) = clip_files([Path("a.mp4")])
    assert (clip.source, clip.margin) == ("ben/1.mp4", 8)


def test_relative_paths_of_a_list_are_seen_from_its_folder(prepared, tmp_path, monkeypatch):
    """Wherever the program runs, and also where the same path exists in the current folder."""
    (prepared / "list.txt").write_text("# a comment\n\nclips/c.mp4\n  clips/a.mp4\n")
    wanted = [prepared / "clips/c.mp4", prepared / "clips/a.mp4"]
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(prepared / "clips", elsewhere / "clips")
    for folder in (prepared, tmp_path, elsewhere):
        monkeypatch.chdir(folder)
        assert [clip.path for clip in find_clips(prepared / "list.txt")] == wanted
        relative = Path(os.path.relpath(prepared / "list.txt"))
        assert [clip.path.resolve() for clip in find_clips(relative)] == wanted


def test_a_list_with_missing_files_is_refused(prepared):
    (prepared / "list.txt").write_text("clips/a.mp4\ngone.mp4\n")
    with pytest.raises(UserError, match=r"lists 2 clips, 1 of which are not there .*gone.mp4"):
        find_clips(prepared / "list.txt")


def test_what_prepare_wrote_last_counts(prepared, tmp_path):
    """`prepare` may run again in the same process, with another margin and other clips."""
    (tmp_path / "list.txt").write_text(str(prepared / "clips/a.mp4"))
    places = prepared, prepared / "clips", tmp_path / "list.txt"
    for margin, source in ((8, "ben/1.mp4"), (0, "carl/1.mp4"), (16, "dora/1.mp4")):
        write_manifest(prepared, [record("a", source, margin=margin)])
        found = [clip for place in places for clip in find_clips(place)] + clip_files([prepared / "clips/a.mp4"])
        known = {(clip.source, clip.margin) for clip in found if clip.path.name == "a.mp4"}
        assert known == {(source, margin)}


def test_videos_of_any_folder_are_clips(tmp_path):
    for name in ("b.mp4", "sub/a.MKV", "notes.txt", ".half.mp4", "c.m4v"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [(c.path.name, c.source, c.margin) for c in find_clips(tmp_path)] == [
        ("b.mp4", "b", 0),
        ("c.m4v", "c", 0),
        ("a.MKV", "a", 0),
    ]


def test_nothing_to_read_is_an_error(tmp_path):
    for place, words in ((tmp_path, "names no clip"), (tmp_path / "none", "There is no")):
        with pytest.raises(UserError, match=words):
            find_clips(place)
    with pytest.raises(UserError, match=r"has no manifest\.jsonl; make it by `latentsync prepare"):
        read_manifest(tmp_path)
    write_manifest(tmp_path, [record("d", "x", status="dropped")])
    with pytest.raises(UserError, match="names no clip that was kept"):
        find_clips(tmp_path)
    (tmp_path / "manifest.jsonl").write_text('{"id": "a"}\n{')
    for read in (find_clips, read_manifest):
        with pytest.raises(UserError, match=r"manifest.jsonl is damaged .*run `latentsync prepare` again"):
            read(tmp_path)


def test_the_margin_is_cut_off(prepared):
    (clip,) = clip_files([prepared / "clips/a.mp4"])
    frame = np.arange(80 * 80 * 3).reshape(80, 80, 3)
    assert np.array_equal(clip.crop(frame), frame[8:72, 8:72])
    (plain,) = clip_files([prepared / "other.mp4"])
    assert np.array_equal(plain.crop(frame), frame)


def test_recordings_are_chosen_by_the_beginning_of_a_name(prepared):
    """Of the file, or of a folder that it lies in: one folder for each person is usual."""
    clips = find_clips(prepared)
    assert [c.path.stem for c in clips if c.is_of(["ann"])] == ["b"]
    assert [c.path.stem for c in clips if c.is_of(["1", "x"])] == ["b", "a"]
    assert [c.path.stem for c in clips if c.is_of(["nna", ".mp4"])] == []
    assert not any(c.is_of([]) for c in clips)


def test_the_held_out_part():
    assert holdout_part(0.25) == (0.375, 0.625)
    assert holdout_part(0.25, 0) == (0, 0.25)
    assert holdout_part(0.25, 1) == (0.75, 1)
    assert holdout_part(1.0) == (0, 1)
