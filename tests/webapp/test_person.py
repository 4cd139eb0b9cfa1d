"""A person's model (LoRA) with the app: what it makes, what is refused, and that nothing is left of it."""

import io
from pathlib import Path

import pytest

from latentsync.errors import UserError
from latentsync.pipeline import lipsync_file
from latentsync.settings import Settings
from latentsync.webapp.backends import ComfyServer, LipSyncRequest
from latentsync.webapp.queue import DONE, FAILED, Job
from latentsync.webapp.service import FormValues
from latentsync.webapp.uploads import take_lora
from latentsync.weights.bundle import load_models

from ..weights.test_lora import write_lora
from .drawn import LIMITS, button, by_key, give, shown, text
from .parts import alike
from .test_queue import wait_until

QUICK = Settings(steps=1, guidance=1.0, codec="h264")


def add(anna, path, name="me.safetensors"):
    with path.open("rb") as stream:
        anna.lora = take_lora(stream, name, anna.folder, LIMITS)
    return anna.lora


def made(service, anna, **rest):
    service.start(anna, FormValues("local", service.backends["local"].checkpoints()[-1], QUICK, **rest))
    assert wait_until(lambda: anna.run.over, 240)
    return anna.run


def test_it_makes_what_the_engine_makes_with_it(service, material, tiny, tmp_path):
    anna, path = give(service, material, "face.png"), write_lora(tmp_path / "me.safetensors", tiny)
    add(anna, path)
    run = made(service, anna, strength=0.5)
    assert (run.state, run.error) == (DONE, "")
    dtype = service.backends["local"]._loaded[1].dtype
    for lora, same in (([f"{path}:0.5"], True), ([], False)):
        out = tmp_path / f"{len(lora)}.mp4"
        with load_models(tiny, lora=lora, dtype=dtype) as models:
            lipsync_file(material / "face.png", material / "say.wav", out, models=models, settings=QUICK)
        assert alike(run.value.video, out) == same
    assert {anna.lora.path, run.value.video} < set(anna.folder.iterdir()), "kept for the next run"
    anna.remove("lora")
    second = made(service, anna)
    assert second.state == DONE
    assert alike(second.value.video, out), "the model without it"


def test_one_of_another_model_is_refused_by_its_own_name(service, material, tiny, tmp_path):
    anna = give(service, material, "face.png")
    add(anna, write_lora(tmp_path / "x.safetensors", tiny, base="1.6", resolution="512"), "anna's mouth.safetensors")
    run = made(service, anna)
    assert run.state == FAILED
    assert "anna's mouth.safetensors was trained on 1.6 at 512 px" in run.error
    assert str(service.folder) not in run.error


@pytest.mark.parametrize("data", [b"", b"nothing of the kind", b"\x08\0\0\0\0\0\0\0{}      "])
def test_what_is_no_lora_is_refused_at_once(tmp_path, data):
    with pytest.raises(UserError) as caught:
        take_lora(io.BytesIO(data), "notes.safetensors", tmp_path, LIMITS)
    assert str(tmp_path) not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_is_no_lora(tmp_path, tiny):
    (tmp_path / "to").mkdir()
    with Path(tiny).open("rb") as stream, pytest.raises(UserError, match=r"tiny\.safetensors is .*, not a LoRA"):
        take_lora(stream, "tiny.safetensors", tmp_path / "to", LIMITS)


def test_the_page_takes_it_and_lets_it_go(screen, service, material, tiny, tmp_path, forms):
    anna = give(service, material)
    shown(screen)
    assert not [one for one in screen.slider if one.key == "strength"]
    path = add(anna, write_lora(tmp_path / "me.safetensors", tiny)).path
    assert r"**me\.safetensors**" in text(shown(screen))
    by_key(screen.slider, "strength").set_value(0.6).run()
    button(screen, "Make the video").click().run()
    assert forms[0].strength == 0.6
    button(screen, "Remove the person's model").click().run()
    assert anna.lora is None
    assert not path.exists()


def test_a_server_cannot_have_it(tmp_path):
    request = LipSyncRequest(tmp_path, None, tmp_path / "o.mp4", "nano", QUICK, lora=("me.safetensors:1",))
    with pytest.raises(UserError, match="on this computer only"):
        ComfyServer("http://127.0.0.1:9").run(request, Job(lambda job: None))
