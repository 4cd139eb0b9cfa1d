"""Pictures against pictures: other libraries, closed forms, and changes whose effect is known."""

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from latentsync.errors import UserError
from latentsync.evaluation.identity import FIVE, face_112, identity_similarity
from latentsync.evaluation.image_metrics import (
    FVD_FRAMES,
    MAX_DB,
    Frechet,
    Moments,
    flicker,
    frechet,
    gradient_similarity,
    lips_region,
    mouth_region,
    psnr,
    sharpness,
    ssim_map,
)
from latentsync.evaluation.mouth_motion import compare_motion, correlation, upright
from latentsync.evaluation.networks import INCEPTION_FILE, Inception, Lpips, Network, fid_network, fvd_network
from latentsync.face.track import FaceTrack

from ..training.parts import tiny_videomae

data = pytest.importorskip("skimage.data", reason="scikit-image brings the portrait")


@pytest.fixture(scope="module")
def portrait():
    return np.ascontiguousarray(cv2.resize(data.astronaut()[:200, 120:320], (128, 128), interpolation=cv2.INTER_AREA))


def noisy(picture, sigma, seed=0):
    noise = np.random.default_rng(seed).normal(0, sigma, picture.shape)
    return np.clip(picture + noise, 0, 255).round().astype(np.uint8)


@pytest.mark.parametrize("sigma", [3, 15, 60])
def test_ssim_and_psnr_are_those_of_scikit_image(portrait, sigma):
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity

    other = noisy(portrait, sigma)
    wanted = structural_similarity(
        portrait, other, channel_axis=-1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255
    )
    assert ssim_map(portrait, other)[5:-5, 5:-5].mean() == pytest.approx(wanted, abs=2e-4)
    assert psnr(portrait, other) == pytest.approx(peak_signal_noise_ratio(portrait, other), abs=1e-3)


def test_equal_pictures_are_as_good_as_it_gets(portrait):
    mouth = mouth_region(128)
    for mask in (None, mouth):
        assert psnr(portrait, portrait, mask) == MAX_DB
        assert gradient_similarity(portrait, portrait, mask) == pytest.approx(1)
    assert ssim_map(portrait, portrait).min() == pytest.approx(1)


def test_a_mask_hides_what_lies_outside(portrait):
    mouth = mouth_region(128)
    other = portrait.copy()
    other[~mouth] = 255 - other[~mouth]
    assert psnr(portrait, other, mouth) == MAX_DB
    assert psnr(portrait, other) < 20
    assert 0.2 < mouth.mean() < 0.5
    assert not mouth[:40].any()


def test_psnr_in_closed_form():
    black = np.zeros((8, 8, 3), np.uint8)
    assert psnr(black, black + 255) == pytest.approx(0)
    assert psnr(black, black + 51) == pytest.approx(20 * np.log10(5))


def test_blur_costs_sharpness_and_gradients_noise_adds_sharpness(portrait):
    everywhere = np.ones((128, 128), bool)
    blurred = cv2.GaussianBlur(portrait, (0, 0), 2)
    plain = sharpness(portrait, everywhere)
    assert sharpness(blurred, everywhere) < 0.2 * plain
    assert sharpness(noisy(portrait, 15), everywhere) > 1.2 * plain
    assert gradient_similarity(portrait, blurred) < 0.95
    assert gradient_similarity(portrait, cv2.GaussianBlur(portrait, (0, 0), 0.7)) > gradient_similarity(
        portrait, blurred
    )


def test_flicker_in_closed_form():
    everywhere = np.ones((16, 16), bool)

    def gray(value):
        return np.full((16, 16, 3), value, np.uint8)

    assert flicker(gray(90), gray(90), gray(90), everywhere) == 0
    assert flicker(gray(90), gray(100), gray(110), everywhere) == 0  # a steady change is no flicker
    assert flicker(gray(90), gray(97), gray(90), everywhere) == 7
    mask = everywhere.copy()
    mask[:, 8:] = False
    half = gray(90)
    half[:, 8:] = 200
    assert flicker(gray(90), half, gray(90), mask) == 0


def test_lips_are_the_hull_and_a_margin():
    points = np.zeros((68, 2))
    points[27], points[8] = (50, 20), (50, 100)
    points[48:60] = [(50 + 15 * np.cos(a), 70 + 8 * np.sin(a)) for a in np.linspace(0, 2 * np.pi, 12, endpoint=False)]
    mask = lips_region(points, 128)
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    assert (rows[0], rows[-1]) == (70 - 8 - 4, 70 + 8 + 4)
    assert (columns[0], columns[-1]) == (50 - 15 - 4, 50 + 15 + 4)


# ---- Fréchet


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), parts=st.lists(st.integers(1, 40), min_size=1, max_size=5))
def test_moments_in_parts_are_those_of_the_whole(seed, parts):
    x = np.random.default_rng(seed).normal(3, 2, (sum(parts) + 1, 4))
    moments = Moments()
    for part in np.split(x, np.cumsum(parts)):
        moments.add(part)
    assert moments.count == len(x)
    assert np.allclose(moments.mean, x.mean(0))
    assert np.allclose(moments.covariance, np.cov(x, rowvar=False))


def gaussian(mean, covariance):
    mean, covariance = np.asarray(mean, float), np.asarray(covariance, float)
    return Moments(101, mean, covariance * 100)


def test_frechet_distance_of_gaussians_with_a_known_answer():
    assert frechet(gaussian([0, 0], np.eye(2)), gaussian([3, 4], np.eye(2))) == pytest.approx(25)
    # independent axes: the sum of (σ - τ)²
    assert frechet(gaussian([0, 0], np.diag([4, 9])), gaussian([0, 0], np.diag([1, 25]))) == pytest.approx(1 + 4)
    flat = gaussian([0, 0], np.diag([1.0, 0.0]))  # fewer samples than features
    assert frechet(flat, flat) == pytest.approx(0, abs=1e-9)


def test_frechet_distance_of_turned_gaussians_by_scipy():
    linalg = pytest.importorskip("scipy.linalg")
    rng = np.random.default_rng(0)
    a, b = (m @ m.T for m in rng.standard_normal((2, 5, 5)))
    wanted = np.trace(a + b - 2 * np.real(linalg.sqrtm(a @ b))) + 5
    assert frechet(gaussian(np.zeros(5), a), gaussian(np.ones(5), b)) == pytest.approx(wanted, rel=1e-6)


def test_frechet_distance_of_samples_goes_to_the_known_one():
    rng = np.random.default_rng(1)
    a, b = Moments(), Moments()
    a.add(rng.normal(0, 1, (40_000, 2)))
    b.add(rng.normal(2, 2, (40_000, 2)))
    assert frechet(a, b) == pytest.approx(2 * (4 + 1), rel=0.03)
    one = Moments()
    one.add(np.zeros((1, 2)))
    with pytest.raises(UserError, match="there are 1 and 40000"):
        frechet(one, b)


class Means(torch.nn.Module):
    """Mean color of each quarter."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(x, 2).flatten(1)


class Clips(torch.nn.Module):
    def forward(self, x: torch.Tensor, rescale: bool, resize: bool, return_features: bool) -> torch.Tensor:
        assert rescale
        assert resize
        assert return_features
        assert x.shape[2] == 16
        return x.mean(dim=(3, 4))[:, :, ::4].flatten(1) / 255


class Apart(torch.nn.Module):
    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a - b).abs().mean(dim=(1, 2, 3))


@pytest.fixture
def script(tmp_path):
    def save(module, name="net.pt"):
        torch.jit.script(module).save(str(tmp_path / name))
        return tmp_path / name

    return save


def test_fid_gathers_features_in_batches(script, portrait):
    frames = [noisy(portrait, 10, seed) for seed in range(21)]
    darker = [(0.5 * f).astype(np.uint8) for f in frames]
    gathered = Frechet(Network(script(Means())), batch=8)
    for made, true in zip(darker, frames, strict=True):
        gathered.add(made, true)
    gathered.finish()
    assert gathered.samples == 21
    means = [np.array([Means()(torch.from_numpy(f).permute(2, 0, 1)[None].float())[0].numpy() for f in fs])
             for fs in (darker, frames)]  # fmt: skip
    assert np.allclose(gathered.sides[0].mean, means[0].mean(0), rtol=1e-5)
    assert gathered.distance() > 0.9 * ((means[0].mean(0) - means[1].mean(0)) ** 2).sum()


def test_fid_agrees_with_torchmetrics(script, portrait):
    fid = pytest.importorskip("torchmetrics.image.fid")

    class Wrapped(torch.nn.Module):
        num_features = 12

        def forward(self, x):
            return Means()(x.float())

    theirs = fid.FrechetInceptionDistance(feature=Wrapped())
    gathered = Frechet(Network(script(Means())), batch=4)
    for seed in range(12):
        made, true = noisy(portrait, 40, seed), noisy(portrait // 2, 20, seed + 100)
        gathered.add(made, true)
        for picture, real in ((made, False), (true, True)):
            theirs.update(torch.from_numpy(picture).permute(2, 0, 1)[None], real=real)
    gathered.finish()
    assert gathered.distance() == pytest.approx(float(theirs.compute()), rel=1e-3)


def test_fvd_windows_are_16_frames_and_end_with_the_clip(script, portrait):
    gathered = Frechet(Network(script(Clips())), FVD_FRAMES, batch=1)
    for _ in range(3):
        for seed in range(35):
            gathered.add(noisy(portrait, 5, seed), noisy(portrait, 9, seed))
        gathered.finish()
    assert gathered.samples == 6
    assert gathered.distance() >= 0


def test_fvd_by_a_videomae_that_is_here(tmp_path, portrait):
    tiny_videomae().save_pretrained(tmp_path / "mae")
    network = fvd_network(str(tmp_path / "mae"))
    gathered = Frechet(network, FVD_FRAMES, batch=1)
    for seed in range(48):
        gathered.add(noisy(portrait, 5, seed), np.roll(portrait, 2 * (seed % 16), 1))
    gathered.finish()
    assert gathered.samples == 3
    assert gathered.distance() > 0
    still = network(torch.zeros(1, 3, FVD_FRAMES, 64, 64))
    assert still.shape == (1, 16)
    assert not torch.allclose(still, network(torch.full((1, 3, FVD_FRAMES, 64, 64), 255.0)))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no VideoMAE"):
        fvd_network(str(tmp_path / "empty"))


def test_fid_by_inception_only_from_weights_that_are_here(tmp_path, portrait, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(UserError, match=rf"{INCEPTION_FILE} in .* not there"):
        fid_network("inception")
    fidelity = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3", exc_type=ImportError)
    (tmp_path / "checkpoints").mkdir()
    with monkeypatch.context() as patch:  # its class with random weights, to have a file of their shapes
        patch.setattr(fidelity.FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        patch.setattr(torch, "load", lambda *_, **__: {})
        state = fidelity.FeatureExtractorInceptionV3("random", ["2048"], "none").state_dict()
    torch.save(state, tmp_path / "checkpoints" / INCEPTION_FILE)
    network = fid_network("inception")
    assert isinstance(network, Inception)
    features = network(torch.from_numpy(np.stack((portrait, portrait // 2))).permute(0, 3, 1, 2).float())
    assert features.shape == (2, 2048)
    assert not torch.equal(features[0], features[1])


def test_networks_that_are_none_are_named(script, tmp_path, portrait):
    with pytest.raises(UserError, match="no file"):
        Network(tmp_path / "none.pt")
    (tmp_path / "text.pt").write_text("hello")
    with pytest.raises(UserError, match="not a TorchScript network"):
        Network(tmp_path / "text.pt")
    gathered = Frechet(Network(script(Apart())), batch=1)
    with pytest.raises(UserError, match="cannot take images of 1×3×128×128"):
        gathered.add(portrait, portrait)


def test_lpips_by_a_file_or_by_weights_that_are_here(script, portrait, monkeypatch, tmp_path):
    net = Lpips(str(script(Apart())))
    assert net(portrait, portrait) == 0
    assert net(np.zeros_like(portrait), np.full_like(portrait, 255)) == pytest.approx(2)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(UserError, match=r"alexnet-\*\.pth in .* not there"):
        Lpips("alex")


# ---- identity


class Color(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(dim=(2, 3))


def test_identity_is_the_cosine_of_the_networks_vectors(script):
    network = Network(script(Color()))
    red, cyan = np.zeros((2, 112, 112, 3), np.uint8)
    red[..., 0], cyan[..., 1:] = 255, 255
    assert identity_similarity(network, red, red) == pytest.approx(1)
    # (1, -1, -1) against (-1, 1, 1)
    assert identity_similarity(network, red, cyan) == pytest.approx(-1)
    with pytest.raises(UserError, match="one vector for each face"):
        identity_similarity(Network(script(torch.nn.Flatten(0), "flat.pt")), red, red)


def test_faces_lie_where_recognition_wants_them():
    frame = np.zeros((300, 300, 3), np.uint8)
    turn = np.array([[0.8, -0.6], [0.6, 0.8]]) * 1.7
    five = FIVE @ turn.T + (90, 40)
    points = np.zeros((68, 2))
    points[36:42], points[42:48], points[30], points[48], points[54] = five
    for x, y in five:
        cv2.circle(frame, (round(x), round(y)), 3, (255, 255, 255), -1)
    face = face_112(frame, points)
    for x, y in FIVE:
        assert face[round(y), round(x), 0] > 200
    assert (face[..., 0] > 128).mean() < 0.02


# ---- motion


def face(opening, shift=(0, 0), scale=1.0, present=None):
    """A face that opens its mouth, somewhere in the picture."""
    rng = np.random.default_rng(0)
    points = np.tile(rng.uniform(-100, 100, (68, 2)), (len(opening), 1, 1))
    points[:, 17:22], points[:, 22:27], points[:, 27:36] = (-60, -60), (60, -60), (0, 0)
    points[:, 27], points[:, 8] = (0, -40), (0, 100)
    points[:, 62], points[:, 66] = (0, 50), (0, 50)
    points[:, 66, 1] += 140 * np.asarray(opening)
    points = points * scale + np.asarray(shift)
    present = np.ones(len(opening), bool) if present is None else present
    return FaceTrack(0, points[:, :3], points.astype(np.float32), present, ((0, len(opening)),), (640, 480))


def test_motion_of_the_same_mouth_elsewhere_is_the_same():
    curve = 0.05 + 0.05 * np.sin(np.arange(50))
    found = compare_motion(face(curve, (300, 200), 1.5), face(curve))
    assert found.opening_correlation == pytest.approx(1)
    assert found.opening_error == pytest.approx(0, abs=1e-6)
    assert found.lip_distance < 1e-5
    assert np.isfinite(found.per_frame).sum() == 50


def test_motion_tells_how_far_lips_are_off():
    curve = 0.05 + 0.05 * np.sin(np.arange(50))
    found = compare_motion(face(curve + 0.02), face(curve))
    assert found.opening_correlation == pytest.approx(1)
    assert found.opening_error == pytest.approx(0.02, abs=1e-5)
    points = upright(face(curve).landmarks)
    tall = np.ptp(points[..., 1], axis=1)
    one_of_twenty = 140 * 0.02 / 20  # the lower lip's point alone is off
    scale = np.linalg.norm(points[0, 8] - points[0, 27]) / 140
    assert found.lip_distance == pytest.approx((one_of_twenty * scale / tall).mean(), rel=1e-3)
    assert compare_motion(face(-curve + 0.1), face(curve)).opening_correlation == pytest.approx(-1)


def test_motion_counts_common_frames_only():
    curve = 0.05 + 0.05 * np.sin(np.arange(50))
    seen = np.arange(50) > 9
    found = compare_motion(face(curve, present=seen), face(curve[:40]))
    assert np.isfinite(found.per_frame).sum() == 30
    assert np.isnan(found.per_frame[:10]).all()
    assert len(found.per_frame) == 40
    assert compare_motion(face(curve, present=~seen), face(curve, present=seen)) is None
    assert compare_motion(face(np.full(50, 0.1)), face(curve)).opening_correlation is None
    assert correlation(np.arange(2.0), np.arange(2.0)) is None
