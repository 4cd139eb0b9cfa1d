"""The trainer of the built-in model's U-Net: what a window is made of, who teaches what, and resuming."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from latentsync.training.loop import trapezoid
from recipes.nano.data import RESOLUTION
from recipes.nano.puppets import Speech
from recipes.nano.scenes import STATES, mouth_box
from recipes.nano.tiles import decode_tile, mouth_tile, tile_of
from recipes.nano.unet import Shapes, UNetTrainer, UNetTraining, cell_weights, train_unet

from .people import CELLS, UNET, floats, number_scenes, plain_vae, speaker

JUDGED = replace(UNET, steps=5, pictures_from=1, decoder_from=2, adversarial_from=3, p_elsewhere=0)
"""Pictures are judged, then the decoder joins, then the critic."""
WAYS = 8
LIPS = np.s_[14:18, 9:15]
"""Cells of an aligned crop."""


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Sums of two threads differ in the last digit now and then when the machine is busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def people(face):
    """Two whose lips move in eight ways, which the audio tells."""
    random = np.random.default_rng(1)
    openings = [np.where(np.arange(n) < 4, 0, random.uniform(0, 0.35, n)) for n in (48, 32)]
    names = ("anna_1", "ben_1")
    return [speaker(face, o, name=names[i], numbers=WAYS, seed=i) for i, o in enumerate(openings)]


@pytest.fixture(scope="module")
def scenes(people):
    return [number_scenes(people, 6), number_scenes(people, 6, seed=1)]


@pytest.fixture(scope="module")
def start(people, scenes):
    """Makes a trainer with these settings changed."""

    def make(base=UNET, parts=scenes, **settings):
        return UNetTrainer(parts, people, replace(base, **settings), plain_vae())

    return make


def numbered(scenes):
    """The same scenes, with the number of its state in all latents of a state."""
    count = torch.arange(STATES, dtype=torch.float16).view(1, -1, 1, 1, 1)
    return [replace(part, latents=count.expand_as(part.latents)) for part in scenes]


def shown_and_reference(made):
    window = made.window()
    return [[round(value) for value in window[name][0, :, 0, 0].tolist()] for name in ("clean", "reference")]


# ---- windows ---------------------------------------------------------------------------------------------------------


def test_windows(start):
    made = start()
    rows, columns = mouth_box(RESOLUTION)
    for _ in range(10):
        window = made.window()
        shape = (4, UNET.frames, CELLS, CELLS)
        assert all(window[name].shape == shape for name in ("clean", "masked", "reference", "noise"))
        assert window["shape"].shape == (UNET.frames, len(made.shapes.silent))
        mouth = (UNET.frames, 3, rows.stop - rows.start, columns.stop - columns.start)
        assert window["mouth"].shape == mouth
        assert (window["masked"] == window["masked"][:, :1]).all()


@pytest.mark.parametrize("natural", [0.0, 1.0])
@pytest.mark.parametrize("static", [0.0, 1.0])
def test_references(start, scenes, natural, static):
    """Never the state itself. One for all but the state that it shows, or each its own; the natural one, or any."""
    made = start(parts=numbered(scenes), p_natural=natural, p_static=static)
    alike, seen = [], set()
    for _ in range(60):
        shown, references = shown_and_reference(made)
        assert all(a != b for a, b in zip(shown, references, strict=True))
        assert len(set(shown)) == UNET.frames
        usual = max(set(references), key=references.count)
        alike.append(references.count(usual) >= UNET.frames - 1)
        seen |= {usual} if static else set(references)
    assert all(alike) if static else np.mean(alike) < 0.3
    assert seen == {0} if static and natural else seen == set(range(STATES))


def test_the_picture_as_it_was_taken_is_learnt_only_where_its_speech_is_known(start, scenes):
    made = start(parts=numbered(scenes))
    said = {bool(part.person[which, 0] >= 0) for part in made.scenes for which in range(len(part))}
    assert said == {True, False}
    for keep in (True, False):
        chosen = [i for i in range(6) if bool(scenes[0].person[i, 0] >= 0) == keep]
        part = type(scenes[0])(**{name: value[chosen] for name, value in numbered(scenes)[0].state().items()})
        made.scenes = [part]
        assert any(0 in shown_and_reference(made)[0] for _ in range(20)) == keep


def test_what_is_told_is_what_is_shown(start, scenes):
    made = start()
    known = scenes[0]
    made.scenes = [known]
    for _ in range(5):
        window = made.window()
        for i in range(UNET.frames):
            match = (known.latents.float() - window["clean"][:, i]).abs().amax((2, 3, 4))
            which, state = divmod(int(match.argmin()), STATES)
            person, frame = int(known.person[which, state]), int(known.frame[which, state])
            assert torch.equal(window["shape"][i], made.shapes(person, frame))
            assert torch.equal(window["mouth"][i], known.mouths[which, state])


@pytest.mark.parametrize("shared", [0.0, 1.0])
def test_noise(start, shared):
    """Always of spread 1; of two states the same, or half so."""
    made = start(p_shared_noise=shared)
    noise = torch.stack([made.window()["noise"] for _ in range(8)])
    assert float(noise.std()) == pytest.approx(1, abs=0.05)
    alike = float(torch.corrcoef(torch.stack([noise[:, :, 0].flatten(), noise[:, :, 1].flatten()]))[0, 1])
    assert alike == pytest.approx(1 if shared else 0.5, abs=0.05)


def test_timesteps(start):
    made = start(batch_size=2000, p_max_noise=1.0)
    assert (made._timesteps() == 999).all()
    made.settings = replace(made.settings, p_max_noise=0.0, noise_bias=0.25)
    drawn = made._timesteps()
    assert 0 <= drawn.min() < drawn.max() <= 999
    assert drawn.float().mean() == pytest.approx(999 / 1.25, rel=0.02)
    made.settings = replace(made.settings, p_max_noise=0.5)
    assert (made._timesteps() == 999).float().mean() == pytest.approx(0.5, abs=0.05)


def test_lessons_are_easy_at_first(start, scenes):
    """From the picture as it was taken, at the noisiest timestep; then it is as the settings say."""
    hard = {"p_natural": 0.0, "p_static": 0.0, "p_max_noise": 0.0}
    made = start(parts=numbered(scenes), easy_until=10, mixed_from=20, **hard)
    for step, share in ((0, 1), (10, 1), (15, 0.5), (20, 0), (99, 0)):
        made.step = step
        assert made._grown(1, 0) == share
        made.settings = replace(made.settings, batch_size=400)
        noisiest = (made._timesteps() == 999).float().mean()
        assert noisiest == pytest.approx(share, abs=0.1)
        made.settings = replace(made.settings, batch_size=1)
        references = [shown_and_reference(made)[1].count(0) >= UNET.frames - 1 for _ in range(20)]
        assert np.mean(references) > 0.99 if share == 1 else np.mean(references) < 0.7


def test_cells_of_the_lips_weigh_most():
    weights = cell_weights(UNetTraining())
    assert weights.shape == (CELLS, CELLS)
    assert weights.mean() == pytest.approx(1)
    y, x = divmod(int(weights.argmax()), CELLS)
    assert 0.5 <= y / CELLS <= 0.84
    assert 0.28 <= x / CELLS <= 0.72
    assert weights[0, 0] == weights.min() > 0


def test_shapes_are_the_main_movements_and_standardized(people):
    shapes = Shapes(people)
    spoken = torch.cat([shapes.spoken[0], shapes.spoken[1]])[:, :WAYS]
    assert spoken.mean(0).abs().max() < 1e-4
    assert torch.allclose(spoken.std(0), torch.ones(WAYS), atol=0.05)
    assert len(shapes.spoken[0]) == people[0].train_frames
    assert torch.equal(shapes(Speech.SILENT, 0), shapes.silent)
    assert torch.equal(shapes(1, 5), shapes.spoken[1][5])


# ---- learning --------------------------------------------------------------------------------------------------------


def quick(made):
    """At full rate, without the warm-up."""
    made.schedule = trapezoid(made.optimizer, 10_000, step=100)
    return made


def test_it_learns_to_show_what_it_is_told(start):
    """Of one window, whose states differ in nothing else: same reference, same noise."""
    same = {"p_natural": 1.0, "p_static": 1.0, "p_shared_noise": 1.0, "p_max_noise": 1.0}
    made = quick(start(frames=6, learning_rate=2e-3, **same))
    window = made.window()
    assert (window["reference"] == window["reference"][:, :1]).all()
    assert (window["noise"] == window["noise"][:, :1]).all()
    made.window = lambda: window
    teller = made.teller.weight.detach().clone()
    losses = [floats(made.train_step()) for _ in range(40)]
    for name in ("clean", "motion", "l1"):
        assert np.mean([x[name] for x in losses[-4:]]) < 0.4 * losses[0][name], name
    assert not torch.equal(made.teller.weight, teller)


# ---- pictures --------------------------------------------------------------------------------------------------------


def test_tiles_are_decoded_as_they_are_in_the_whole():
    """They lie in the mouth's box, whose pictures they are compared with, and hold the lips."""
    vae, latents = plain_vae(), torch.randn(2, 4, CELLS, CELLS)
    whole, seen = vae.decode(latents), np.zeros((CELLS, CELLS))
    for seed in range(12):
        rows, columns = tile = mouth_tile(np.random.default_rng(seed))
        there = whole[:, :, 8 * rows.start : 8 * rows.stop, 8 * columns.start : 8 * columns.stop]
        assert torch.allclose(decode_tile(vae, latents, tile), there, atol=1e-6)
        for cells, box in zip(tile, mouth_box(RESOLUTION), strict=True):
            assert box.start <= 8 * cells.start < 8 * cells.stop <= box.stop
        seen[tile] += 1
    assert (seen[LIPS] == 12).all()
    rows, columns = mouth_box(RESOLUTION)
    pictures = torch.randint(0, 256, (2, 3, RESOLUTION, RESOLUTION), dtype=torch.uint8)
    part = pictures[:, :, 8 * tile[0].start : 8 * tile[0].stop, 8 * tile[1].start : 8 * tile[1].stop]
    assert torch.allclose(tile_of(pictures[:, :, rows, columns], tile), part / 127.5 - 1)


@pytest.fixture(scope="module")
def straight(start):
    """A trainer that did not stop, the losses of its steps, and what the decoder had learnt before each."""
    made = start(base=JUDGED)
    steps = [(made.decoder.gain.item(), floats(made.train_step())) for _ in range(JUDGED.steps)]
    return made, [losses for _, losses in steps], [gain for gain, _ in steps]


def test_judges_join_one_after_the_other_and_the_decoder_learns(straight):
    made, losses, gains = straight
    assert [any("l1" in name for name in step) for step in losses] == [False, True, True, True, True]
    assert [any("g_loss" in name for name in step) for step in losses] == [False, False, False, True, True]
    assert gains[0] == gains[1] == gains[2] != gains[3]
    assert made.average_decoder.module.gain.item() not in (gains[0], made.decoder.gain.item())
    assert all(math.isfinite(v) for step in losses for v in step.values())


def test_pictures_are_compared_with_their_own(start):
    """What the judges say reaches the latents, at the mouth only; true latents have nearly no loss."""
    made = start(base=JUDGED, batch_size=2, decoded_frames=6)
    windows = [made.window() for _ in range(2)]
    clean = torch.stack([w["clean"] for w in windows]).requires_grad_()
    data = {"clean": clean, "mouth": torch.stack([w["mouth"] for w in windows])}
    wrong = data | {"mouth": 255 - data["mouth"]}
    for step in (0, 3):
        made.step = step
        other = made.pixel_losses(*made._mouths(clean, wrong))[1]
        images, own = made.pixel_losses(*made._mouths(clean, data))  # the last, since each takes a step of the critic
        assert own["l1"] < 0.1 * other["l1"]
    clean.grad = None
    made._pixel_total(own, images).backward()
    judged = clean.grad.abs().amax((0, 1, 2)) > 0
    assert judged[LIPS].all()
    assert not judged[:9].any()


def test_the_decoder_does_not_forget_true_latents(start):
    """A third of what it decodes while it is trained are an encoder's; before, none."""
    made = start(base=JUDGED, batch_size=2, decoded_frames=6)
    windows = [made.window() for _ in range(2)]
    data = {name: torch.stack([w[name] for w in windows]) for name in windows[0]}
    shares = []
    for step in (1, 2):
        made.step = step
        images, _ = made.pixel_losses(*made._mouths(data["clean"] * 0 + 5, data))
        shares.append([round(float(image.std()), 3) > 0 for image in images].count(True))
    assert shares == [0, 2]


def test_nor_the_rest_of_a_face(start, monkeypatch):
    """Parts of pictures as they were taken, anywhere, each with its own latents, now and then."""
    made = start(base=JUDGED, batch_size=2, decoded_frames=6, p_elsewhere=0.5)
    seen, pixel_losses = [], made.pixel_losses

    def spy(latents, true, tile):
        seen.append((made.step, latents, true, tile))
        return pixel_losses(latents, true, tile)

    monkeypatch.setattr(made, "pixel_losses", spy)
    for step in [1, 2] * 8:
        made.step = step
        made.train_step()
    whole = {step: [part for at, *part in seen if at == step and len(part[0]) == 2] for step in (1, 2)}
    assert not whole[1]
    assert 2 <= len(whole[2]) <= 6
    for latents, true, (rows, columns) in whole[2]:
        for one, pixels in zip(latents, true, strict=True):
            scene, i = next(
                (s, i) for s in made.scenes for i in range(len(s)) if torch.equal(s.latents[i, 0].float(), one)
            )
            part = scene.picture[i][:, 8 * rows.start : 8 * rows.stop, 8 * columns.start : 8 * columns.stop]
            assert torch.allclose(pixels, part / 127.5 - 1)


# ---- resuming --------------------------------------------------------------------------------------------------------


def test_it_goes_on_as_if_it_had_not_stopped(start, straight, tmp_path):
    """When all judges have joined."""
    whole, wanted, _ = straight
    first = start(base=JUDGED)
    assert [floats(first.train_step()) for _ in range(4)] == wanted[:4]
    first.save(tmp_path / "unet.pt")
    second = start(base=JUDGED)
    torch.manual_seed(99)  # whatever happened in between
    second.load(tmp_path / "unet.pt")
    assert floats(second.train_step()) == wanted[4]
    for part in ("unet", "average", "average_decoder", "teller", "decoder"):
        for key, value in whole.parts()[part].state_dict().items():
            assert torch.equal(second.parts()[part].state_dict()[key], value), (part, key)


def test_a_run_takes_up_scenes_that_are_written_meanwhile(scenes, people, tmp_path):
    folder, run = tmp_path / "scenes", tmp_path / "run"
    folder.mkdir()
    save_file(scenes[0].state(), folder / "00000.safetensors")
    lines, short = [], replace(UNET, steps=2)

    def report(values):
        lines.append(values["step"])
        save_file(scenes[1].state(), folder / f"{2 * values['step'] - 1:05d}.safetensors")

    made = train_unet(folder, people, run, short, plain_vae(), on_report=report)
    assert lines == [1, 2]
    assert [len(part) for part in made.scenes] == [6, 6], "0 and 1; 3 comes after a gap"
    assert torch.equal(made.scenes[1].latents, scenes[1].latents)
    assert sorted(path.name for path in run.iterdir()) == ["unet", "unet.pt"]
    again = train_unet(folder, people, run, short, plain_vae(), on_report=report)
    assert again.step == 2
    assert lines == [1, 2], "what is finished is not done again"
