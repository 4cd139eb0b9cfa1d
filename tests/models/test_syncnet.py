"""StableSyncNet and Chung's SyncNet: goldens, the published key lists, sizes that fit or do not, and files."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from latentsync.audio.mel import SAMPLE_RATE
from latentsync.audio.syncnet_mel import mel_span, sync_mel
from latentsync.errors import UserError
from latentsync.models.syncnet import (
    PUBLISHED,
    ChungSyncNet,
    EncoderConfig,
    StableSyncNet,
    SyncNetConfig,
    config_from_dict,
)
from latentsync.weights.files import our_metadata, shapes_of, write_safetensors
from latentsync.weights.syncnet_files import load_syncnet, save_syncnet

from ..tiny import lively

SMALL = SyncNetConfig(
    audio=EncoderConfig(1, (32, 64), ((8, 4), (10, 4)), (False, True)),
    visual=EncoderConfig(12, (32, 32, 64), (4, (2, 4), 2), (True, False, False)),
    frames=4,
    size=(16, 32),
    mels=(80, 13),
)


def small(seed=0):
    net = StableSyncNet(SMALL)
    lively(net, seed)
    return net.eval().requires_grad_(False)


def synthetic(seconds=47):
    """The waveform that the portable golden's README describes."""
    t = np.arange(seconds * SAMPLE_RATE) / SAMPLE_RATE
    phase = 2 * np.pi * np.cumsum(110 + 30 * np.sin(2 * np.pi * 0.7 * t)) / SAMPLE_RATE
    voice = sum(np.sin(k * phase) / k for k in range(1, 9))
    loud = np.maximum(0, np.sin(2 * np.pi * 2.3 * t) + 0.3 * np.sin(2 * np.pi * 0.31 * t))
    return torch.from_numpy(0.25 * voice * loud).float()


def test_embeddings_match_the_golden(golden):
    folder = golden / "full" / "stable_syncnet"
    config = config_from_dict(json.loads((folder / "config.json").read_text()))
    net, data = load_syncnet(folder / "stable_syncnet.pt", config=config), load_file(folder / "io.safetensors")
    seen, heard = net(data["frames"].float(), data["mel"].float())
    assert (seen - data["vision"]).abs().max() < 1e-4
    assert (heard - data["audio"]).abs().max() < 1e-4
    assert data["vision"].abs().max() > 0.05  # the golden says something
    swapped = net(data["frames"].float().flip(1), data["mel"].float())[0]
    assert (swapped - data["vision"]).abs().max() > 1e-3  # and hears the order of the frames


def test_mel_matches_the_golden(golden_portable):
    wanted = load_file(golden_portable / "audio" / "synthetic.safetensors")
    assert torch.allclose(synthetic()[:64], wanted["waveform_head"], atol=1e-6)
    assert (sync_mel(synthetic(3)) - wanted["mel"]).abs().max() < 1e-3


def test_a_mel_window_begins_with_its_frame():
    assert mel_span(0, 25) == (0, 52)
    assert mel_span(1, 25) == (3, 55)  # int(80 · 1 / 25)
    assert mel_span(26, 25) == (83, 135)
    assert mel_span(10, 25, 5) == (32, 48)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_architectures_match_their_manifests(spec, name):
    manifests = spec / "manifests"
    public = config_from_dict(json.loads((manifests / f"syncnet_{name}.config.json").read_text()))
    assert public == PUBLISHED[name]
    with torch.device("meta"):
        net = StableSyncNet(PUBLISHED[name])
    assert shapes_of(net.state_dict()) == manifest(manifests / f"syncnet_{name}.json")


def test_chung_matches_its_manifest(spec):
    assert shapes_of(ChungSyncNet().state_dict()) == manifest(spec / "manifests" / "syncnet_v2.json")


def manifest(path):
    facts = json.loads(path.read_text())
    return {key: tuple(entry["shape"] if isinstance(entry, dict) else entry) for key, entry in facts.items()}


def test_chung_makes_one_vector_of_each():
    net = ChungSyncNet().eval().requires_grad_(False)
    lips, sound = net(torch.rand(2, 3, 5, 224, 224) * 255, torch.randn(2, 1, 13, 20))
    assert lips.shape == sound.shape == (2, 1024)


def test_vectors_are_unit_and_not_negative():
    seen, heard = small()(torch.randn(3, 12, 16, 32), torch.randn(3, 1, 80, 13))
    for vectors in (seen, heard):
        assert vectors.shape == (3, 64)
        assert torch.allclose(vectors.norm(dim=1), torch.ones(3), atol=1e-5)
        assert vectors.min() >= 0


@pytest.mark.parametrize(
    ("part", "change", "said"),
    [
        ("visual", {"factors": (4, 2, 2)}, r"visual encoder.*16×32 → 4×8 → 2×4 → 1×2.*height 1 times and the width 2 "),
        ("audio", {"factors": ((8, 4), (4, 4))}, r"audio encoder.*80×13 → 10×3 → 3×1.*height 3 times and the width 1 "),
        ("audio", {"factors": (16, 16)}, "use a smaller one, or one block fewer"),
        ("audio", {"widths": (32, 96)}, "96 channels and the visual one in 64"),
        ("visual", {"attention": (True,)}, r"\[1, 3\] widths, factors and attentions"),
    ],
)
def test_sizes_that_do_not_fit_are_named(part, change, said):
    wrong = dataclasses.replace(SMALL, **{part: dataclasses.replace(getattr(SMALL, part), **change)})
    with pytest.raises(UserError, match=said):
        StableSyncNet(wrong)


def test_check_counts_as_the_network_does():
    """sizes() is arithmetic; the blocks are convolutions with paddings of their own."""
    for config in (SMALL, *PUBLISHED.values()):
        for part, size in ((config.audio, config.mels), (config.visual, config.size)):
            with torch.device("meta"):
                net = StableSyncNet(config)
                encoder = net.audio_encoder if part is config.audio else net.visual_encoder
                x = encoder.conv_in(torch.zeros(1, part.in_channels, *size))
                found = []
                for block in encoder.down_blocks:
                    x = block(x)
                    found.append(tuple(x.shape[2:]))
            sizes = part.sizes(*size)
            assert found[-1] == sizes[-1] == (1, 1)
            assert [s for s in found if s in sizes] == found


def test_saved_and_loaded_it_is_the_same(tmp_path):
    net = small()
    path = save_syncnet(tmp_path / "net.safetensors", net, {"steps": 12})
    again = load_syncnet(path)
    assert again.config == SMALL
    picture, mel = torch.randn(2, 12, 16, 32), torch.randn(2, 1, 80, 13)
    for a, b in zip(net(picture, mel), again(picture, mel), strict=True):
        torch.testing.assert_close(a, b)
    assert not again.training
    assert not any(p.requires_grad for p in again.parameters())


def test_public_layout_and_chung_load(tmp_path):
    torch.save({"global_step": 3, "state_dict": small().state_dict()}, tmp_path / "net.pt")
    assert isinstance(load_syncnet(tmp_path / "net.pt", config=SMALL), StableSyncNet)
    chung = ChungSyncNet()
    torch.save(chung.state_dict(), tmp_path / "syncnet_v2.model")
    assert isinstance(load_syncnet(tmp_path / "syncnet_v2.model"), ChungSyncNet)


def test_files_that_are_none_are_named(tmp_path):
    torch.save(small().state_dict(), tmp_path / "small.pt")
    with pytest.raises(UserError, match=r"none of the published SyncNet architectures.*16_pixel_attn.*give its config"):
        load_syncnet(tmp_path / "small.pt")
    state = small().state_dict()
    kept = {k: v for k, v in state.items() if k != "audio_encoder.conv_in.bias"}
    kept["visual_encoder.conv_in.weight"] = torch.zeros(32, 9, 3, 3)
    save_file(kept, tmp_path / "cut.safetensors")
    with pytest.raises(UserError, match=r"missing: audio_encoder.conv_in.bias; .*is 32×9×3×3 where 32×12×3×3") as told:
        load_syncnet(tmp_path / "cut.safetensors", config=SMALL)
    assert "\n" not in str(told.value)
    half = {k: v for k, v in ChungSyncNet().state_dict().items() if not k.startswith("netfcaud")}
    torch.save(half, tmp_path / "half.model")
    with pytest.raises(UserError, match=r"not a SyncNet that fits; missing: netfcaud"):
        load_syncnet(tmp_path / "half.model")
    (tmp_path / "page.model").write_text("<html>404</html>")
    with pytest.raises(UserError, match="web page"):
        load_syncnet(tmp_path / "page.model")
    with pytest.raises(UserError, match="no file"):
        load_syncnet(tmp_path / "none.pt")


@pytest.mark.parametrize(
    "config", ["{", "[]", "[" * 100_000, "{}", '{"audio": 1, "visual": 2}', '{"audio_encoder": {}}']
)
def test_damaged_metadata_are_one_sentence(tmp_path, config):
    path = save_syncnet(tmp_path / "net.safetensors", small(), {})
    write_safetensors(path, small().state_dict(), our_metadata(path) | {"config": config})
    with pytest.raises(UserError, match="damaged metadata"):
        load_syncnet(path)
