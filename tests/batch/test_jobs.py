"""Lists of jobs: what they may say, and every fault told before anything runs."""

import dataclasses
import json
import os
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentsync.audio.speakers import Speaker
from latentsync.batch.jobs import COLUMNS, read_jobs
from latentsync.errors import UserError
from latentsync.settings import FITS, SOLVERS, Settings


@pytest.fixture
def folder(tmp_path):
    for name in ("a.mp4", "b.mp4", "s.wav"):
        (tmp_path / name).write_bytes(b"x")
    return tmp_path


def written(folder, text, name="jobs.csv"):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_csv(folder):
    text = '\ufeffvideo, audio,out,steps,guidance,face,fit\na.mp4,s.wav,1.mp4,7,1,left,hold\n\nb.mp4,,,,,"10,20,3",\n'
    first, second = read_jobs(written(folder, text), folder / "out")
    assert (first.line, first.video, first.audio) == (2, folder / "a.mp4", folder / "s.wav")
    assert first.out == folder / "out" / "1.mp4"
    assert first.settings == Settings(steps=7, guidance=1.0, face="left", fit="hold")
    assert (second.line, second.audio, second.out) == (4, None, folder / "out" / "b.mp4")
    assert second.settings == Settings(face="10,20,3")


def test_json_lines(folder):
    rows = [{"video": "a.mp4", "steps": 7, "guidance": 2, "seed": "5"}, {"video": str(folder / "b.mp4"), "audio": None}]
    path = written(folder, "\n\n".join(map(json.dumps, rows)), "jobs.jsonl")
    first, second = read_jobs(path, folder / "out")
    assert first.settings == Settings(steps=7, guidance=2.0, seed=5)
    assert isinstance(first.settings.guidance, float)
    assert (first.line, second.line) == (1, 3)
    assert second.video == folder / "b.mp4"


@given(
    st.builds(
        Settings,
        steps=st.integers(1, 1000),
        guidance=st.floats(0, 20, allow_nan=False),
        seed=st.integers(0, 2**63 - 1),
        solver=st.sampled_from(SOLVERS),
        fit=st.sampled_from(FITS),
        face=st.sampled_from(["left", "3", "10,20,7"]),
        window_batch=st.integers(1, 64),
    )
)
def test_every_setting_goes_through_both_forms(tmp_path_factory, settings):
    folder = tmp_path_factory.mktemp("jobs")
    (folder / "v.mkv").write_bytes(b"x")
    row = {"video": "v.mkv"} | dataclasses.asdict(settings)
    quoted = ",".join(f'"{value}"' for value in row.values())
    row["out"] = "1.mp4"
    table = written(folder, f"{','.join(row)}\n{quoted},1.mp4\n")
    lines = written(folder, json.dumps(row) + "\n", "jobs.jsonl")
    assert read_jobs(table)[0].settings == read_jobs(lines)[0].settings == settings


FAULTS = [
    ("", "no job"),
    ("video,audio\n", "no job"),
    ("video,stpes\na.mp4,3\n", "'stpes'"),
    ("video;audio\na.mp4;s.wav\n", "'video;audio'"),
    ("video,out\na.mp4,1.mp4,extra\n", "more cells"),
    ("audio,out\ns.wav,1.mp4\n", "Line 2: there is no video"),
    ("video,out\nc.mp4,1.mp4\n", "Line 2: there is no file"),
    ("video,audio,out\na.mp4,t.wav,1.mp4\n", "t.wav"),
    ("video,out,steps\na.mp4,1.mp4,many\n", "steps is 'many'; it must be a whole number"),
    ("video,out,steps\na.mp4,1.mp4,2.5\n", "whole number"),
    ("video,out,steps\na.mp4,1.mp4,-1\n", "between 0 and 1000"),
    ("video,out,guidance\na.mp4,1.mp4,nan\n", "guidance is nan"),
    ("video,out,fit\na.mp4,1.mp4,stretch\n", "'stretch'"),
    ("video,out\na.mp4,1.gif\n", "'.gif'"),
    ("video,out\na.mp4,no/1.mp4\n", "there is no folder"),
    ("video,out\na.mp4,1.mp4\nb.mp4,./1.mp4\n", "Line 3: "),
    ("video,out\na.mp4,1.mp4\nb.mp4,./1.mp4\n", "output of line 2 too"),
    ("video,out\na.mp4,b.mp4\nb.mp4,2.mp4\n", "line 3 reads it"),
    ("video\na.mp4\n", "line 2 reads it"),  # named after itself, in its own folder
]


@pytest.mark.parametrize(("text", "said"), FAULTS)
def test_faults_are_told_in_one_sentence(folder, text, said):
    with pytest.raises(UserError) as caught:
        read_jobs(written(folder, text))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


LINES = [
    ("nonsense", "line 1"),
    ("[1]", "has a list"),
    ('{"video": 3}', "video is 3"),
    ('{"video": "a.mp4", "out": "1.mp4", "steps": true}', "steps is True"),
    ('{"video": "a.mp4", "out": "1.mp4", "steps": 2.5}', "steps is 2.5"),
    ('{"video": "a.mp4", "out": "1.mp4", "face": [1, 2, 3]}', "face is [1, 2, 3]"),
    ('{"video": "a.mp4", "out": "1.mp4", "models": "x"}', "'models'"),
]


@pytest.mark.parametrize(("text", "said"), LINES)
def test_faults_of_json_lines(folder, text, said):
    with pytest.raises(UserError) as caught:
        read_jobs(written(folder, text, "jobs.jsonl"))
    assert said in str(caught.value)


def test_all_faults_at_once_but_not_endlessly(folder):
    text = "video,out\n" + "".join(f"none{i}.mp4,{i}.mp4\n" for i in range(9))
    with pytest.raises(UserError, match=r"Line 2: .*Line 3: .*Line 6: .* And 4 more\.$"):
        read_jobs(written(folder, text))


@pytest.mark.parametrize("name", ["jobs.txt", "none.csv"])
def test_what_is_no_list(folder, name):
    (folder / "jobs.txt").write_text("video\na.mp4\n")
    with pytest.raises(UserError):
        read_jobs(folder / name)
    (folder / "latin.csv").write_bytes("video\nä.mp4\n".encode("latin-1"))
    with pytest.raises(UserError, match="UTF-8"):
        read_jobs(folder / "latin.csv")


def test_every_setting_is_a_column():
    assert set(COLUMNS) == {"video", "audio", "out", "speakers"} | {f.name for f in dataclasses.fields(Settings)}


def test_the_key_tells_jobs_apart(folder):
    def key(text="video,audio,out\na.mp4,s.wav,1.mp4\n", models=None):
        return read_jobs(written(folder, text))[0].key(models or {"checkpoint": "nano"})

    first = key()
    assert key() == first
    assert key("video,audio,out,steps\na.mp4,s.wav,1.mp4,9\n") != first
    assert key("video,audio,out\na.mp4,s.wav,2.mp4\n") != first
    assert key("video,audio,out\nb.mp4,s.wav,1.mp4\n") != first
    assert key("video,out\na.mp4,1.mp4\n") != first
    assert key(models={"checkpoint": "1.5"}) != first
    os.utime(folder / "s.wav", (1, 1))
    assert key() != first


def test_a_photo_of_the_face_lies_beside_the_list(folder, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    (folder / "anna.jpg").write_bytes(b"")
    jobs = read_jobs(written(folder, "video,out,face\na.mp4,1.mp4,anna.jpg\na.mp4,2.mp4,auto\na.mp4,3.mp4,1\n"))
    assert [job.settings.face for job in jobs] == [str(folder / "anna.jpg"), "auto", "1"]


SPEAKERS = "left = s.wav; 1,2,3=t@2.wav@1.5;anna.jpg=s.wav@0.25 ;"


def test_speakers_in_both_forms(folder, tmp_path, monkeypatch):
    """Files beside the list, whichever folder this is; an @ in the name of one that is there belongs to it."""
    for name in ("t@2.wav", "u.wav@7", "anna.jpg"):
        (folder / name).write_bytes(b"x")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    table = written(
        folder, f'video,audio,out,speakers,spans,points\na.mp4,,1.mp4,"{SPEAKERS}",1-2,\nb.mp4,s.wav,2.mp4,,,\n'
    )
    row = {"video": "a.mp4", "out": "1.mp4", "speakers": SPEAKERS.strip(" ;").split(";"), "spans": "1-2"}
    lines = written(folder, json.dumps(row), "jobs.jsonl")
    first, second = read_jobs(table)
    assert (
        first.speakers
        == read_jobs(lines)[0].speakers
        == (
            Speaker("left", folder / "s.wav"),
            Speaker("1,2,3", folder / "t@2.wav", Fraction("1.5")),
            Speaker(str(folder / "anna.jpg"), folder / "s.wav", Fraction("0.25")),
        )
    )
    assert first.settings == Settings(spans="1-2")
    assert first.inputs == (folder / "a.mp4", folder / "s.wav", folder / "t@2.wav", folder / "s.wav")
    assert second.speakers == ()
    named = read_jobs(written(folder, "video,out,speakers\na.mp4,1.mp4,left=u.wav@7\n"))[0].speakers
    assert named == (Speaker("left", folder / "u.wav@7"),)


@pytest.mark.parametrize(
    ("speakers", "said"),
    [
        ("left", "speaker is 'left'"),
        ("left=none.wav", "there is no file"),
        ("middle=s.wav", "face is 'middle'"),
        ([3], "speakers is [3]"),
        ({"left": "s.wav"}, "speakers is {"),
        (7, "speakers is 7"),
    ],
)
def test_faults_of_speakers(folder, speakers, said):
    row = {"video": "a.mp4", "out": "1.mp4", "speakers": speakers}
    with pytest.raises(UserError) as caught:
        read_jobs(written(folder, json.dumps(row), "jobs.jsonl"))
    assert said in str(caught.value)
    with pytest.raises(UserError, match="both audio and speakers"):
        read_jobs(written(folder, json.dumps(row | {"audio": "s.wav", "speakers": "left=s.wav"}), "jobs.jsonl"))


def test_the_key_knows_who_speaks_when(folder):
    def key(speakers):
        rows = {"video": "a.mp4", "out": "1.mp4", "speakers": speakers}
        return read_jobs(written(folder, json.dumps(rows), "jobs.jsonl"))[0].key({})

    keys = [key(one) for one in (["left=s.wav"], ["right=s.wav"], ["left=s.wav@1"], ["left=s.wav", "right=s.wav"], [])]
    assert len(set(keys)) == 5
    assert key(["left=s.wav"]) == keys[0]
