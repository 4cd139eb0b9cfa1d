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
from latentsync.errors import UserError
from latentsync.media.probe import probe
from latentsync.media.reader import VideoReader
from latentsync.training.dataset import (
    FPS,
    ROLL,
    ClipDataset,
    ClipFile,
    ClipStore,
    Feed,
    Numbers,
    UNetWindows,
    draw_windows,
    find_clips,
    split,
    to_device,
    unit,
)

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
    here.write_text(f"# two of them\n{clips / 'clips/c2.mp4'}\n\n{clips / 'clips/c0.mp4'}\n")
    assert [(clip.path.name, clip.source) for clip in find_clips(here)] == [("c2.mp4", "film2"), ("c0.mp4", "film0")]


def test_a_list_may_name_files_beside_it(tmp_path):
    (tmp_path / "list.txt").write_text("a.mp4\nsub/b.mp4\n")
    found = find_clips(tmp_path / "list.txt")
    assert [clip.path for clip in found] == [tmp_path / "a.mp4", tmp_path / "sub/b.mp4"]
    assert [clip.source for clip in found] == ["a", "b"]


def test_a_folder_of_videos(tmp_path):
    for name in ("b.mp4", "a.MKV", "notes.txt", ".half.mp4"):
        (tmp_path / name).touch()
    assert names(find_clips(tmp_path)) == ["a.MKV", "b.mp4"]


@pytest.mark.parametrize(("content", "words"), [("", "names no clip"), ('{"status": "dropped"}', "names no clip")])
def test_no_clip_is_an_error(tmp_path, content, words):
    (tmp_path / "manifest.jsonl").write_text(content)
    with pytest.raises(UserError, match=words):
        find_clips(tmp_path)
    with pytest.raises(UserError, match="There is no"):
        find_clips(tmp_path / "nowhere")
    (tmp_path / "manifest.jsonl").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        find_clips(tmp_path)


def some_clips(sources, pieces=3):
    return [ClipFile(f"{s}-{i}.mp4", f"film{s}") for s in range(sources) for i in range(pieces)]


@given(st.integers(2, 40), st.floats(0.01, 0.9), st.integers(0, 99))
def test_recordings_are_held_out_whole(sources, share, seed):
    clips = some_clips(sources)
    train, held = split(clips, share, "source", seed)
    assert held
    assert not {c.source for c in train} & {c.source for c in held}
    assert sorted(map(str, train + held)) == sorted(map(str, clips))
    assert split(clips[::-1], share, "source", seed)[1][::-1] == held


@given(st.integers(32, 500), st.floats(0.05, 0.9))
def test_time_is_held_out_at_the_end(frames, share):
    (train,), (held,) = split(some_clips(1, 1), share, "time")
    assert train.span(frames)[0] == 0
    assert train.span(frames)[1] == held.span(frames)[0]
    assert held.span(frames)[1] == frames


def test_what_to_hold_out_is_chosen_by_the_number_of_recordings():
    assert split(some_clips(3), 0.2)[0][0].part == (0.0, 0.8)
    assert split(some_clips(20), 0.2)[0][0].part == (0.0, 1.0)
    assert split(some_clips(3), 0.0) == (some_clips(3), [])
    with pytest.raises(UserError, match="one recording"):
        split(some_clips(1), 0.2, "source")
    with pytest.raises(UserError, match="hold_out is 'people'"):
        split(some_clips(3), 0.2, "people")


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
    each = [Numbers(step, batch, accumulate=accumulate, rank=r, world=world) for r in range(world)]
    mine = [n for numbers in each for part in taken(numbers, 2 * accumulate) for n in part]
    total = batch * accumulate * world
    assert sorted(mine) == list(range(step * total, (step + 2) * total))


@given(st.integers(0, 20), st.integers(0, 20), st.integers(1, 3))
def test_a_run_that_goes_on_takes_the_same_numbers(begin, later, accumulate):
    whole = Numbers(begin, 2, accumulate=accumulate, rank=1, world=2)
    rest = Numbers(begin + later, 2, accumulate=accumulate, rank=1, world=2)
    assert taken(whole, later * accumulate + 4)[-4:] == taken(rest, 4)


def test_a_rollback_changes_the_numbers():
    assert taken(Numbers(3, 2, rolls=2), 1) == [[2 * ROLL + 6, 2 * ROLL + 7]]


def name_only(clip, random):
    return {"name": str(clip.path), "value": int(random.integers(1000))}


@given(st.integers(1, 30), st.integers(0, 5), st.integers(0, 3))
def test_an_epoch_shows_every_clip_once(count, epoch, rolls):
    data = ClipDataset(some_clips(count, 1), name_only, seed=4)
    first = rolls * ROLL + epoch * count
    assert sorted(data[n]["name"] for n in range(first, first + count)) == sorted(str(c.path) for c in data.clips)


def test_a_sample_hangs_on_seed_and_number_alone():
    data, other = (ClipDataset(some_clips(9, 1), name_only, seed) for seed in (1, 2))
    forward = [data[n] for n in range(30)]
    assert [data[n] for n in reversed(range(30))][::-1] == forward
    assert [other[n] for n in range(30)] != forward
    assert [data[ROLL + n]["name"] for n in range(30)] != [sample["name"] for sample in forward]
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


def test_nothing_but_bad_clips_is_an_error():
    def make(clip, random):
        raise OSError("gone")

    with pytest.raises(UserError, match=r"3 clips in a row cannot be used; the last was 0-\d.mp4: gone"):
        ClipDataset(some_clips(1, 3), make, seed=0)[0]
    with pytest.raises(UserError, match="no clips"):
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
        with pytest.raises(UserError, match="no sound for frames"):
            store.mel(clip, start)


def test_features_are_made_once(store, clip):
    made = store.audio(clip, 3)
    deaf = ClipStore(store.cache, SIDE)
    deaf.hears = store.hears
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
        small = torch.nn.functional.avg_pool2d(unit(pixels), 8)
        return small, -small

    with pytest.raises(UserError, match="no latents"):
        store.latents(clip, 0, 16, "latents-x")
    store.fill_latents(clip, "latents-x", encode)
    clean, masked = store.latents(clip, 20, 16, "latents-x")
    assert torch.allclose(clean, encode(store.pixels(clip, 20))[0], atol=1e-3)
    assert torch.equal(masked, -clean)


@pytest.mark.parametrize(
    ("change", "words"),
    [({"fps": 30}, "30 fps"), ({"shape": (48, 64)}, "64×48"), ({"sound": False}, "no sound")],
)
def test_clips_must_be_as_prepare_makes_them(store, tmp_path, change, words):
    frames = faces(40, 0)[:, : change.get("shape", (64, 64))[0]]
    sound = write_speech(tmp_path / "a.wav", 2.0) if change.get("sound", True) else None
    path = write_clip(tmp_path / "odd.mp4", frames, FPS * change.get("fps", 25) / 25, audio=sound)
    with pytest.raises(UserError, match=words):
        store.pixels(ClipFile(path, "odd"), 0)


def test_a_sample_of_the_unet(store, clip):
    make = UNetWindows(store, mel=True)
    sample = make(clip, np.random.default_rng(3))
    target, reference = draw_windows(np.random.default_rng(3), 0, 60)
    assert torch.equal(sample["pixels"], store.pixels(clip, target))
    assert torch.equal(sample["reference"], store.pixels(clip, reference))
    assert torch.equal(sample["audio"], store.audio(clip, target))
    assert torch.equal(sample["mel"], store.mel(clip, target))
    assert "mel" not in UNetWindows(store)(clip, np.random.default_rng(3))


def test_training_never_shows_the_end_that_is_held_out(store, clips):
    train, held = split(find_clips(clips), 0.4, "time")
    for seed in range(50):
        target, reference = draw_windows(np.random.default_rng(seed), *train[0].span(60))
        assert max(target, reference) + 16 <= 36
        assert draw_windows(np.random.default_rng(seed), *held[0].span(60))[0] >= 36


def same(a, b):
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert torch.equal(value, b[name]) if isinstance(value, torch.Tensor) else value == b[name]


def test_loading_ahead_changes_nothing(store, clips):
    data = ClipDataset(find_clips(clips), UNetWindows(store), seed=1)
    for clip in data.clips:
        store.audio(clip, 0)
    plain, ahead = (Feed(data, Numbers(2, 2), workers=workers) for workers in (0, 2))
    for _ in range(3):
        same(next(plain), next(ahead))
    assert plain.waited > 0
    assert to_device(next(plain), "cpu")["number"].tolist() == [10, 11]


def test_the_manifest_of_the_fixture_is_the_agreed_one(clips):
    records = [json.loads(line) for line in (clips / "manifest.jsonl").read_text().splitlines()]
    assert {r["status"] for r in records} == {"kept", "dropped"}
