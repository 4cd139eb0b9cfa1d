"""Few-step distillation on tiny networks: the target is the engine's own, the student comes near it, files say so."""

import copy

import pytest
import torch
from torch.utils.data import default_collate
from typer.testing import CliRunner

from latentsync.cli.main import app
from latentsync.dataset import find_clips
from latentsync.errors import UserError
from latentsync.models.unet import UNet
from latentsync.sampling import denoise_window
from latentsync.training.dataset import ClipDataset, ClipStore, split_clips
from latentsync.training.distributed import make_accelerator
from latentsync.training.dry_run import dry_run, estimate
from latentsync.training.recipes import DistillRecipe
from latentsync.training.unet.data import UNetWindows
from latentsync.training.unet.distill import CRITIC, DistillTask
from latentsync.weights.convert import save_model
from latentsync.weights.load import default_settings, load_unet

from ..tiny import lively, tiny_config, tiny_whisper
from .parts import BASE, SIDE, tiny_vae, write_files
from .test_memory import allocated


def teacher_of(seed=1, audio_dim=384, **stated):
    config = {"prediction_type": "sample", "resolution": SIDE, "timestep_spacing": "trailing", **stated}
    unet = lively(UNet(tiny_config(motion="none", audio_dim=audio_dim)), seed)
    unet.config = unet.config.__class__(**{**vars(unet.config), **config})
    return unet.eval()


def task_of(data, teacher=None, student=None, **settings):
    chosen = DistillRecipe(
        **{**BASE, "prediction_type": "sample", "critic_weight": 0.0, "teacher_guidance": 1.0} | settings
    )
    split = split_clips(find_clips(data), chosen)
    make = UNetWindows(ClipStore(data / "cache", SIDE, tiny_whisper()), pixels=True)
    teacher = teacher or teacher_of()
    student = student or copy.deepcopy(teacher)
    return DistillTask(
        student,
        tiny_vae(),
        chosen,
        ClipDataset(split.train, make, chosen.seed),
        ClipDataset(split.validation, make, chosen.validate_seed),
        teacher=teacher,
    )


def parts_of(task, batch):
    """Conditions and noise of a batch whose sampling begins with noise alone."""
    clean, masked, reference = task.latents(batch)
    start, noise = task.draw_start(batch["number"], clean.shape, validating=True)
    assert start == 0
    mask = task.codec.mask.expand(len(clean), 1, clean.shape[2], -1, -1)
    return noise, torch.cat((mask, masked, reference), 1)


@pytest.mark.parametrize("guidance", [1.0, 1.5])
@pytest.mark.parametrize("prediction", ["sample", "v_prediction"])
def test_the_whole_target_is_what_the_engine_makes(clips, prediction, guidance):
    teacher = teacher_of(prediction_type=prediction)
    options = {"student_steps": 1, "teacher_steps": 4, "solve": 4, "teacher_guidance": guidance}
    task = task_of(clips, teacher, prediction_type=prediction, **options)
    batch = default_collate([task.data[0]])
    noise, conditions = parts_of(task, batch)
    target = task.target(task.network, noise, conditions, batch["audio"], 0)
    with torch.no_grad():
        wanted = denoise_window(teacher, noise, conditions, batch["audio"], steps=4, guidance=guidance)
    assert torch.allclose(target, wanted, atol=1e-4 * float(wanted.abs().max()))


def test_a_student_that_is_its_teacher_has_nothing_to_learn(clips):
    task = task_of(clips, student_steps=2, teacher_steps=2, solve=1)
    batch = default_collate([task.data[1]])  # begins at the second of two steps: the teacher's last
    assert task.draw_start(batch["number"], torch.Size((1, 4, 16, 8, 8)), validating=True)[0] == 1
    assert float(task.losses(task.network, batch, validating=True)["distill"]) < 1e-5


def test_batches_begin_where_the_student_does_and_elsewhere(clips):
    task = task_of(clips, student_steps=2, teacher_steps=8, solve=1)
    assert [task.plan[i] for i in task.own] == [999, 499]
    shape = torch.Size((1, 4, 16, 8, 8))
    draw = lambda number, validating=False: task.draw_start(torch.tensor([number]), shape, validating=validating)  # noqa: E731
    starts = [draw(n)[0] for n in range(200)]
    assert set(starts) == set(range(8))
    assert 0.5 < sum(start in task.own for start in starts) / 200 < 0.75  # half, and a quarter of the others
    assert {draw(n, True)[0] for n in range(8)} == set(task.own)
    noise = draw(3)[1]
    assert torch.equal(noise, draw(3)[1])
    assert torch.equal(noise[:, :, 0], noise[:, :, 9])
    assert float(noise[:, :, 0].std()) == pytest.approx(1, abs=0.15)
    finishing = task_of(clips, student_steps=2, teacher_steps=8, solve=8)
    assert {finishing.draw_start(torch.tensor([n]), shape, validating=False)[0] for n in range(50)} == set(task.own)


def test_the_student_comes_near_its_teacher(clips):
    """One window: the distance of one step to the teacher's four falls by a fifth, with the critic at work."""
    torch.manual_seed(0)
    task = task_of(clips, student_steps=1, teacher_steps=4, solve=4, critic_weight=0.1, decoded_frames=2)
    optimizer = torch.optim.AdamW(task.network.parameters(), lr=1e-3)
    batch, distances = default_collate([task.data[0]]), []
    before = copy.deepcopy(task.teacher.state_dict())
    for _ in range(14):
        losses = task.losses(task.network, batch)
        distances.append(float(losses["distill"]))
        optimizer.zero_grad()
        losses["total"].backward()
        optimizer.step()
    assert losses.keys() == {"total", "distill", "d_loss", "g_loss", "features"}
    assert distances[-1] < distances[0] * 0.8
    assert all(torch.equal(tensor, before[key]) for key, tensor in task.teacher.state_dict().items())
    assert float(losses["d_loss"]) < 2  # the critic learns: 2 is what guessing gives


def test_the_critic_is_resumed(clips, tmp_path):
    task = task_of(clips, critic_weight=1.0, decoded_frames=1)
    batch = default_collate([task.data[0]])
    task.losses(task.network, batch)
    task.save(tmp_path, task.network.state_dict(), 1)
    again = task_of(clips, critic_weight=1.0, decoded_frames=1)
    again.load(tmp_path)
    for _ in range(2):
        assert torch.equal(task.losses(task.network, batch)["total"], again.losses(again.network, batch)["total"])
    (tmp_path / CRITIC).unlink()
    with pytest.raises(UserError, match="critic"):
        again.load(tmp_path)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"student_steps": 3, "teacher_steps": 20}, "multiple"),
        ({"student_steps": 0}, "multiple"),
        ({"solve": 0}, "solve"),
        ({"critic_weight": -1.0}, "critic_weight"),
        ({"teacher_guidance": 30.0}, "teacher_guidance"),
    ],
)
def test_recipes_that_cannot_work(settings, words):
    with pytest.raises(UserError, match=words):
        DistillRecipe(**settings)


def test_another_kind_of_student_is_refused(clips):
    student = teacher_of(prediction_type="epsilon")
    with pytest.raises(UserError, match="two kinds"):
        task_of(clips, student=student, prediction_type="epsilon")


def test_from_the_command_line_to_a_file_that_knows_its_steps(clips, tmp_path, monkeypatch):
    monkeypatch.setattr("latentsync.training.trainer.draw_charts", lambda run: None)
    files, teacher = write_files(tmp_path), teacher_of(audio_dim=64)
    stated = {"prediction_type": "sample", "resolution": SIDE, "default_steps": 8, "default_guidance": 2.0}
    path = save_model(tmp_path / "teacher.safetensors", teacher.state_dict(), metadata=stated | {"license": "MIT"})
    words = ["--teacher", path, "--steps", 2, "--teacher-steps", 4, "--training-steps", 2, "--device=cpu",
             "--workers", 0, "--vae", files["vae"], "--whisper", files["whisper"],
             "--cache", tmp_path / "cache", "--validate-every", 2,
             "--holdout-time", 0.4, "--decoded-frames", 1, "-o", tmp_path / "run"]  # fmt: skip
    result = CliRunner().invoke(app, ["train", "distill", str(clips), *map(str, words)])
    assert result.exit_code == 0, result.output
    assert "4 steps, guidance 2" in result.output
    made = tmp_path / "run" / "unet.safetensors"
    settings = default_settings(made)
    assert (settings.steps, settings.guidance) == (2, 1.0)
    assert load_unet(made).config.timestep_spacing == "trailing"
    assert (tmp_path / "run" / "samples" / "step-00000002.png").is_file()


def test_a_dry_run_counts_the_teacher_and_the_critic_and_writes_nothing(clips, tmp_path):
    chosen = {"student_steps": 1, "teacher_steps": 4, "decoded_frames": 2}
    accelerator = make_accelerator("fp32", 1, cpu=True)
    runs = []
    for weight in (0.0, 1.0):
        task = task_of(clips, critic_weight=weight, **chosen)
        before = copy.deepcopy(task.teacher.state_dict())
        runs.append((task, dry_run(task, task.recipe, accelerator, tmp_path / "run")))
        assert all(torch.equal(tensor, before[key]) for key, tensor in task.teacher.state_dict().items())
    (plain, without), (judged, critic) = runs
    bytes_of = lambda module: sum(t.nbytes for t in [*module.parameters(), *module.buffers()])  # noqa: E731
    assert without.memory.frozen == bytes_of(plain.codec.vae) + bytes_of(plain.teacher)
    assert critic.memory.frozen - without.memory.frozen == bytes_of(judged.critic.critic)
    assert critic.memory.step > without.memory.step  # decoded mouths
    assert critic.speed.seconds > 0
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("critic_weight", [0.0, 1.0])
def test_the_estimate_is_what_the_allocator_gives(clips, critic_weight):
    task = task_of(clips, critic_weight=critic_weight, student_steps=1, teacher_steps=4, decoded_frames=4)
    batch = default_collate([task.data[0]])
    optimizer = torch.optim.AdamW([p for p in task.network.parameters() if p.requires_grad])
    memory = estimate(task, task.recipe, make_accelerator("fp32", 1, cpu=True), batch)

    def step():
        task.losses(task.network, batch)["total"].backward()
        optimizer.step()
        optimizer.zero_grad()

    step()  # creates the optimizers' states
    assert memory.step == pytest.approx(allocated(step), rel=0.15)


def test_a_dry_run_from_the_command_line(clips, tmp_path):
    files, teacher = write_files(tmp_path), teacher_of(audio_dim=64)
    stated = {"prediction_type": "sample", "resolution": SIDE, "default_steps": 8}
    path = save_model(tmp_path / "teacher.safetensors", teacher.state_dict(), metadata=stated)
    before = sorted(tmp_path.rglob("*"))
    words = ["--teacher", path, "--training-steps", 500, "--device=cpu", "--vae", files["vae"], "--whisper",
             files["whisper"], "--holdout-time", 0.4, "-o", tmp_path / "run", "--dry-run"]  # fmt: skip
    done = CliRunner().invoke(app, ["train", "distill", str(clips), *map(str, words)])
    assert done.exit_code == 0, done.output
    assert "500 steps in" in done.output
    assert sorted(tmp_path.rglob("*")) == before


def test_spacing_of_a_file_must_be_known(tmp_path):
    odd = {"prediction_type": "sample", "resolution": SIDE, "timestep_spacing": "sideways"}
    path = save_model(tmp_path / "odd.safetensors", teacher_of().state_dict(), metadata=odd)
    with pytest.raises(UserError, match="sideways"):
        load_unet(path)
