"""Samples: which clips, which windows, what is in them; the same for a number whoever asks, and whenever."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from latentsync.audio.load import load_audio
from latentsync.audio.syncnet_mel import mel_span, sync_mel
from latentsync.audio.whisper_features import audio_windows, encode_audio
from latentsync.dataset import FPS, ClipFile, find_clips
from latentsync.errors import UserError
from latentsync.media.probe import probe
from latentsync.media.reader import VideoReader
from latentsync.training import dataset
from latentsync.training.dataset import (
    ROLLBACK_OFFSET,
    ClipDataset,
    ClipStore,
    IndexSampler,
    load_batches,
    split_clips,
    to_device,
    to_signed,
)
from latentsync.training.recipes import RunSettings
from latentsync.training.unet.data import UNetWindows, draw_windows

from ..tiny import tiny_whisper, write_clip, write_speech
from .parts import SIDE, faces

# ---- which clips -----------------------------------------------------------------------------------------------------


def names(clips):
    return [clip.path.name for clip in clips]


def test_a_prepared_folder_gives_what_was_kept(clips):
    found = find_clips(clips)
    assert names(found) == ["c0.mp4", "c1.mp4", "c2.mp4"]
    assert [clip.source for clip in found] == ["film0", "film1", "film2"]


def test_a_list_knows_the_recordings_of_its_clips(clips, tmp_path):
    here = tmp_path / "list.txt"
    here.write_text(f"{clips / 'clips/c2.mp4'}\n{clips / 'clips/c0.mp4'}\n")
    assert [(clip.path.name, clip.source) for clip in find_clips(here)] == [("c2.mp4", "film2"), ("c0.mp4", "film0")]


def some_clips(sources, pieces=3):
    return [ClipFile(f"{s}-{i}.mp4", f"film{s}") for s in range(sources) for i in range(pieces)]


def split(clips, at=1.0, **settings):
    return split_clips(clips, RunSettings(**{"holdout_recordings": 0.2, "holdout_time": 0.2} | settings), at)


@given(st.integers(2, 40), st.floats(0.01, 0.89), st.integers(0, 99))
def test_recordings_are_held_out_whole(sources, share, seed):
    clips, settings = some_clips(sources), {"holdout_recordings": share, "holdout_time": 0.0, "seed": seed}
    found = split(clips, **settings)
    assert found.validation
    assert not {c.source for c in found.train} & {c.source for c in found.validation}
    assert sorted(map(str, found.train + found.validation)) == sorted(map(str, clips))
    assert split(clips[::-1], **settings).validation[::-1] == found.validation


@given(st.integers(32, 500), st.floats(0.05, 0.89), st.sampled_from((0.0, 0.5, 1.0)))
def test_held_out_time_is_the_rest_of_the_clip(frames, share, at):
    found = split(some_clips(1, 1), at, holdout_time=share)
    trained = [set(range(*clip.span(frames))) for clip in found.train]
    held = set(range(*found.validation[0].span(frames)))
    assert not held & set.union(*trained)
    assert held | set.union(*trained) == set(range(frames))
    if at == 1:
        assert found.validation[0].span(frames)[1] == frames


def test_what_to_hold_out_is_chosen_by_the_number_of_recordings():
    assert split(some_clips(3)).train[0].part == (0.0, 0.8)
    assert split(some_clips(20)).train[0].part == (0.0, 1.0)
    nothing = split(some_clips(3), holdout_recordings=0.0, holdout_time=0.0)
    assert (nothing.train, nothing.validation) == (some_clips(3), [])
    with pytest.raises(UserError, match="one recording"):
        split(some_clips(1), holdout_time=0.0)


def test_people_are_never_trained_on(tmp_path):
    clips = [ClipFile(tmp_path / f"{name}.mp4", f"{name}.mpg") for name in ("anna_1", "anna_2", "ben_1")]
    found = split(clips, holdout_people=("ben",), holdout_time=0.25)
    assert {c.path.stem for c in found.recordings} == {"ben_1"}
    assert {c.path.stem for c in [*found.train, *found.time]} == {"anna_1", "anna_2"}
    with pytest.raises(UserError, match="starts with 'carl'"):
        split(clips, holdout_people=("carl",))
    with pytest.raises(UserError, match="all clips"):
        split(clips, holdout_people=("anna", "ben"))


# ---- windows and numbers ---------------------------------------------------------------------------------------------


@given(st.integers(0, 200), st.integers(0, 200), st.integers(0, 2**32), st.integers(1, 24))
def test_windows_do_not_overlap(first, more, seed, length):
    stop = first + more
    possible = more >= length and stop >= 2 * length
    random = np.random.default_rng(seed)
    if not possible:
        with pytest.raises(UserError, match="too few"):
            draw_windows(random, first, stop, length)
        return
    target, reference = draw_windows(random, first, stop, length)
    assert first <= target <= stop - length
    assert 0 <= reference <= stop - length
    assert abs(target - reference) >= length


def test_every_window_can_be_drawn():
    random = np.random.default_rng(0)
    drawn = {draw_windows(random, 0, 40) for _ in range(2000)}
    starts = {target for target, _ in drawn}
    assert starts == {*range(0, 9), *range(16, 25)}


def taken(numbers, parts):
    return list(itertools.islice(iter(numbers), parts))


@given(st.integers(0, 50), st.integers(1, 4), st.integers(1, 3), st.integers(1, 4))
def test_ranks_and_parts_share_the_numbers_of_a_step(step, batch, accumulate, world):
    each = [IndexSampler(step, batch, accumulation=accumulate, rank=r, world=world) for r in range(world)]
    mine = [n for numbers in each for part in taken(numbers, 2 * accumulate) for n in part]
    total = batch * accumulate * world
    assert sorted(mine) == list(range(step * total, (step + 2) * total))


@given(st.integers(0, 20), st.integers(0, 20), st.integers(1, 3))
def test_a_run_that_goes_on_takes_the_same_numbers(begin, later, accumulate):
    whole = IndexSampler(begin, 2, accumulation=accumulate, rank=1, world=2)
    rest = IndexSampler(begin + later, 2, accumulation=accumulate, rank=1, world=2)
    assert taken(whole, later * accumulate + 4)[-4:] == taken(rest, 4)


def test_a_rollback_changes_the_numbers():
    assert taken(IndexSampler(3, 2, rollbacks=2), 1) == [[2 * ROLLBACK_OFFSET + 6, 2 * ROLLBACK_OFFSET + 7]]


def name_only(clip, random):
    return {"name": str(clip.path), "value": int(random.integers(1000))}


@given(st.integers(1, 30), st.integers(0, 5), st.integers(0, 3))
def test_an_epoch_shows_every_clip_once(count, epoch, rollbacks):
    data = ClipDataset(some_clips(count, 1), name_only, seed=4)
    first = rollbacks * ROLLBACK_OFFSET + epoch * count
    assert sorted(data[n]["name"] for n in range(first, first + count)) == sorted(str(c.path) for c in data.clips)


def test_a_sample_hangs_on_seed_and_number_alone():
    data, other = (ClipDataset(some_clips(9, 1), name_only, seed) for seed in (1, 2))
    forward = [data[n] for n in range(30)]
    assert [data[n] for n in reversed(range(30))][::-1] == forward
    assert [other[n] for n in range(30)] != forward
    assert [data[ROLLBACK_OFFSET + n]["name"] for n in range(30)] != [sample["name"] for sample in forward]
    assert [s["name"] for s in forward[:9]] != [s["name"] for s in forward[9:18]]


def test_a_bad_clip_is_replaced_and_named():
    def make(clip, random):
        if "0-1" in str(clip.path):
            raise RuntimeError("moov atom not found")
        return name_only(clip, random)

    data = ClipDataset(some_clips(1, 3), make, seed=0)
    samples = [data[n] for n in range(3)]
    (hit,) = [s for s in samples if s["bad"]]
    assert hit["bad"] == "0-1.mp4: moov atom not found"
    assert {s["name"] for s in samples} == {"0-0.mp4", "0-2.mp4"}
    assert [data[n] for n in range(3)] == samples


@pytest.mark.parametrize("error", [TypeError, AttributeError, KeyError, AssertionError, ZeroDivisionError])
def test_an_error_of_the_program_is_not_taken_for_a_bad_clip(error):
    def make(clip, random):
        raise error("in our own code")

    with pytest.raises(error, match="in our own code"):
        ClipDataset(some_clips(1, 3), make, seed=0)[0]


def test_nothing_but_bad_clips_is_an_error():
    def make(clip, random):
        raise OSError("gone")

    with pytest.raises(UserError, match=r"3 clips in a row cannot be used; the last was 0-\d.mp4: gone"):
        ClipDataset(some_clips(1, 3), make, seed=0)[0]
    with pytest.raises(UserError, match="There are no clips"):
        ClipDataset([], make, seed=0)


# ---- what is in them -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return ClipStore(tmp_path_factory.mktemp("cache"), SIDE, tiny_whisper(64, 1))


@pytest.fixture
def clip(clips):
    return find_clips(clips)[1]


def test_pictures_are_the_files_own(store, clip):
    info = probe(clip.path)
    with VideoReader(info) as reader:
        wanted = np.stack(list(reader.read(range(20, 36))))
    assert np.array_equal(store.pixels(clip, 20).permute(0, 2, 3, 1).numpy(), wanted)
    small = ClipStore(store.cache, 32).pixels(clip, 20)
    assert small.shape == (16, 3, 32, 32)
    assert (small.float().mean() - wanted.mean()).abs() < 1


def test_the_margin_of_prepare_is_cut_off(clips, tmp_path):
    """A clip of 80 pixels with 8 around the crop is one of 64, also when it comes from a list."""
    folder = tmp_path / "wide"
    (folder / "clips").mkdir(parents=True)
    sound = write_speech(tmp_path / "a.wav", 1.6)
    path = write_clip(folder / "clips" / "w.mp4", faces(40, 3, 80), FPS, audio=sound)
    record = {"id": "w", "source": "film", "status": "kept", "path": "clips/w.mp4", "margin": 8}
    (folder / "manifest.jsonl").write_text(json.dumps(record) + "\n")
    (tmp_path / "list.txt").write_text(f"{path}\n")
    with VideoReader(probe(path)) as reader:
        wanted = np.stack(list(reader.read(range(4, 20))))[:, 8:-8, 8:-8]
    for place in (folder, tmp_path / "list.txt", folder / "clips"):
        (wide,) = find_clips(place)
        assert wide.source == "film"
        seen = ClipStore(tmp_path, SIDE).pixels(wide, 4)
        assert np.array_equal(seen.permute(0, 2, 3, 1).numpy(), wanted)


def test_sound_is_what_the_engine_hears(store, clip):
    waveform, rate = load_audio(clip.path, probe(clip.path).start)
    wanted = audio_windows(encode_audio(waveform, rate, store.whisper), FPS, 60)[20:36]
    assert torch.allclose(store.audio(clip, 20), wanted, atol=2e-3)
    first, last = mel_span(20, FPS)
    assert torch.equal(store.mel(clip, 20)[0], sync_mel(waveform)[:, first:last])


@given(st.integers(0, 44))
@settings(max_examples=10, deadline=None)
def test_every_window_has_its_sound(store, clips, start):
    clip = find_clips(clips)[0]
    assert store.mel(clip, start).shape == (1, 80, 52)
    assert store.audio(clip, start).shape == (16, 20, 64)


def test_no_sound_outside_the_clip(store, clip):
    for start in (-1, 46):
        with pytest.raises(UserError, match="no audio for frames"):
            store.mel(clip, start)


def test_features_are_made_once(store, clip):
    made = store.audio(clip, 3)
    deaf = ClipStore(store.cache, SIDE)
    deaf.features_key = store.features_key
    assert torch.equal(deaf.audio(clip, 3), made)
    with pytest.raises(UserError, match="no Whisper was given"):
        ClipStore(store.cache / "other", SIDE).audio(clip, 3)
    assert not list(store.cache.rglob("*.part"))


def test_a_changed_file_has_other_features(store, clip, tmp_path):
    copy = tmp_path / "c1.mp4"
    sound = write_speech(tmp_path / "a.wav", 2.4)
    write_clip(copy, faces(60, 9), FPS, audio=sound)
    moved = replace(clip, path=copy)
    before = store.mel(moved, 0)
    write_clip(copy, faces(60, 9), FPS, audio=write_speech(tmp_path / "b.wav", 2.4, rate=8000))
    assert not torch.equal(store.mel(moved, 0), before)


def test_latents_come_back_as_they_went(store, clip):
    def encode(pixels):
        small = torch.nn.functional.avg_pool2d(to_signed(pixels), 8)
        return small, -small

    with pytest.raises(UserError, match="no latents"):
        store.latents(clip, 0, 16, "latents-x")
    store.fill_latents(clip, "latents-x", encode)
    clean, masked = store.latents(clip, 20, 16, "latents-x")
    assert torch.allclose(clean, encode(store.pixels(clip, 20))[0], atol=1e-3)
    assert torch.equal(masked, -clean)


@pytest.mark.parametrize(
    ("change", "words"),
    [({"fps": 30}, "30 fps"), ({"shape": (48, 64)}, "64×48"), ({"sound": False}, "no audio")],
)
def test_clips_must_be_as_prepare_makes_them(store, tmp_path, change, words):
    frames = faces(40, 0)[:, : change.get("shape", (64, 64))[0]]
    sound = write_speech(tmp_path / "a.wav", 2.0) if change.get("sound", True) else None
    path = write_clip(tmp_path / "odd.mp4", frames, FPS * change.get("fps", 25) / 25, audio=sound)
    with pytest.raises(UserError, match=words):
        store.pixels(ClipFile(path, "odd"), 0)


def test_a_sample_of_the_unet(store, clip):
    make = UNetWindows(store, mel=16)
    sample = make(clip, np.random.default_rng(3))
    target, reference = draw_windows(np.random.default_rng(3), 0, 60)
    assert torch.equal(sample["pixels"], store.pixels(clip, target))
    assert torch.equal(sample["reference"], store.pixels(clip, reference))
    assert torch.equal(sample["audio"], store.audio(clip, target))
    assert torch.equal(sample["mel"], store.mel(clip, target)[None])
    smaller = UNetWindows(store, mel=10)(clip, np.random.default_rng(3))["mel"]  # of a SyncNet of ten frames
    assert torch.equal(smaller, torch.stack([store.mel(clip, target + start, 10) for start in (0, 6)]))
    assert "mel" not in UNetWindows(store)(clip, np.random.default_rng(3))


def test_training_never_shows_the_end_that_is_held_out(store, clips):
    found = split(find_clips(clips), holdout_time=0.4)
    for seed in range(50):
        target, reference = draw_windows(np.random.default_rng(seed), *found.train[0].span(60))
        assert max(target, reference) + 16 <= 36
        assert draw_windows(np.random.default_rng(seed), *found.validation[0].span(60))[0] >= 36


def same(a, b):
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert torch.equal(value, b[name]) if isinstance(value, torch.Tensor) else value == b[name]


def test_loading_ahead_changes_nothing(store, clips):
    data = ClipDataset(find_clips(clips), UNetWindows(store), seed=1)
    for clip in data.clips:
        store.audio(clip, 0)
    plain, ahead = (load_batches(data, IndexSampler(2, 2), workers=workers) for workers in (0, 2))
    for _ in range(3):
        same(next(plain), next(ahead))
    assert to_device(next(plain), "cpu")["number"].tolist() == [10, 11]


def test_no_more_loading_processes_than_cores(store, clips, monkeypatch):
    """PyTorch warns of more, twice, on every small machine; four are the default."""
    monkeypatch.setattr(dataset, "cores", lambda: 1)
    data = ClipDataset(find_clips(clips), UNetWindows(store), seed=1)
    loaded = load_batches(data, IndexSampler(0, 1), workers=RunSettings().workers)
    next(loaded)
    assert loaded._num_workers == 1
