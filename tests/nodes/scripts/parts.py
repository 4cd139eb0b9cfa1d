"""Our nodes, the engine and ComfyUI's own machinery on one clip; prints how far apart they are."""

from fractions import Fraction

from begin import JOB, answer, pack, run, start

start(["--cpu"])

import comfy.model_management as memory  # noqa: E402
import comfy.sd  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(2)
if "vram" in JOB:  # ComfyUI takes --lowvram and --novram for graphics cards only: the processor plays one
    memory.vram_state = memory.VRAMState[JOB["vram"]]
    memory.is_device_cpu = lambda device: False
host, pipeline, rendering = map(pack, ("nodes.host", "latentsync.pipeline", "latentsync.rendering"))
faces, fit, audio, sampling = (pack(f"nodes.{name}") for name in ("faces", "fit", "audio", "sampling"))
models_of_host = pack("nodes.host.models")
clip = np.load(JOB["clip"])
frames, wave, rate = clip["frames"], torch.from_numpy(clip["wave"]), 16_000
settings = pack("latentsync.settings").Settings(**JOB["settings"])
checkpoint = JOB["checkpoint"]
if checkpoint != "nano":  # a file is offered by its name in our folder
    import folder_paths

    folder_paths.add_model_folder_path("latentsync", JOB["folder"])
    folder_paths.add_model_folder_path("loras", JOB["folder"])


def engine() -> tuple[torch.Tensor, np.ndarray]:
    """Scaled latents of every frame, as the engine's windows make them, the shifted last one's first part left out."""
    made, out = [], []
    original = rendering.denoise_window

    def spy(*args, **more):
        made.append(original(*args, **more))
        return made[-1]

    rendering.denoise_window = spy
    path = "nano" if checkpoint == "nano" else f"{JOB['folder']}/{JOB.get('merged', checkpoint)}"
    loras = [f"{JOB['folder']}/{name}:{strength}" for name, strength in JOB.get("person", {}).items()]
    with pipeline.load_models(path, vae=path, whisper="tiny.en", lora=loras) as models:
        result = pipeline.lipsync(frames, wave, rate, Fraction(25), models=models, settings=settings)
    rendering.denoise_window = original
    done = 0
    for stretch in result.report.segments:
        for window in pack("latentsync.timeline").windows(*stretch):
            out.append(made[done][0, :, window.keep - window.start :])
            done += 1
    return torch.cat(out, 1).transpose(0, 1), result.frames


def conditions(model, vae, encoder):
    images = torch.from_numpy(frames).float() / 255
    sound = {"waveform": wave[None, None], "sample_rate": rate}
    found = run(faces.LatentSyncFindFaces, images=images, face="largest", resolution=0, preview_frame=0, model=model)
    crops, track = found[:2]
    images, sound, crops, track = run(
        fit.LatentSyncFitLength, images=images, audio=sound, fps=25.0, fit="pingpong", crops=crops, face_track=track
    )
    (heard,) = run(audio.LatentSyncEncodeAudio, audio_encoder=encoder, audio=sound)
    return (
        images,
        track,
        run(sampling.LatentSyncCondition, vae=vae, crops=crops, audio=heard, face_track=track, fps=25.0),
    )


def sampled(model, conditioned) -> torch.Tensor:
    positive, negative, latent = conditioned
    how = {"seed": settings.seed, "steps": settings.steps, "guidance": settings.guidance, "solver": settings.solver}
    how["mode"] = settings.mode
    (made,) = run(sampling.LatentSyncSampler, model=model, positive=positive, negative=negative, latent=latent, **how)
    return made


def apart(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


plain, vae, encoder = host.load(checkpoint, None, None)
model = plain
if "person" in JOB:  # our own way: a LoRA's name and strength on Load Model
    model, vae, encoder = host.load(checkpoint, None, None, *next(iter(JOB["person"].items())))
if "lora" in JOB:  # as a user does it: the file in models/loras, its name on ComfyUI's node
    import nodes

    (model,) = nodes.LoraLoaderModelOnly().load_lora_model_only(model, JOB["lora"], 1.0)
images, track, conditioned = conditions(model, vae, encoder)
made = sampled(model, conditioned)
wanted, pictures = engine()
inner = model.model
composed = run(faces.LatentSyncComposite, images=images, crops=vae.decode(made["samples"]), face_track=track)[0]
facts = {
    "latents": apart(inner.process_latent_in(made["samples"]), wanted),
    "pictures": float((composed * 255 - torch.from_numpy(pictures)).abs().max()),
    "memory": {n: float(inner.memory_required([n, 4, 24, 24])) for n in (16, 32, 320, 3200)},
    "cast": sum(getattr(m, "comfy_cast_weights", False) for m in inner.diffusion_model.modules()),
}
if "lora" in JOB or "person" in JOB:
    facts["patches"] = len(model.patches)
    facts["lora"] = apart(sampled(plain, conditioned)["samples"], made["samples"])
if not JOB.get("deep"):
    answer(**facts)
    raise SystemExit

# every layer with weights must be one that ComfyUI can leave elsewhere and bring in when it is used
unet = inner.diffusion_model
facts["not castable"] = [
    name
    for name, layer in unet.named_modules()
    if list(layer.parameters(recurse=False)) and not hasattr(layer, "comfy_cast_weights")
]
memory.unload_all_models()
model.load(memory.get_torch_device(), lowvram_model_memory=1)
facts["left outside"] = sum(getattr(m, "comfy_cast_weights", False) for m in unet.modules())
facts["split"] = apart(sampled(model, conditioned)["samples"], made["samples"])
memory.unload_all_models()

half = host.load(checkpoint, None, torch.float16)[0]
facts["half"] = apart(sampled(half, conditioned)["samples"], made["samples"])
facts["half dtype"] = str(half.model.get_dtype())

# a LoRA as trainers write it, on the audio attention
key = next(k for k in unet.state_dict() if k.endswith("attn2.to_v.weight"))
width, heard = unet.state_dict()[key].shape
name = "diffusion_model." + key.removesuffix(".weight")
lora = {f"{name}.lora_A.weight": torch.randn(4, heard), f"{name}.lora_B.weight": torch.randn(width, 4)}
patched = comfy.sd.load_lora_for_models(model, None, lora, 1.0, 0.0)[0]
facts["patches"] = len(patched.patches)
with_lora = sampled(patched, conditioned)["samples"]
facts["lora"] = apart(with_lora, made["samples"])
memory.unload_all_models()
patched.load(memory.get_torch_device(), lowvram_model_memory=1)
facts["lora split"] = apart(sampled(patched, conditioned)["samples"], with_lora)
memory.unload_all_models()
facts["after"] = apart(sampled(model, conditioned)["samples"], made["samples"])
answer(**facts)
