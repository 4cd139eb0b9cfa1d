"""`python -m recipes.covers`: how the network that tells what lies over a face was made."""

from pathlib import Path
from typing import Annotated

import typer
from rich import print as show

app = typer.Typer(no_args_is_help=True, help=__doc__, pretty_exceptions_enable=False)
Run = Annotated[Path, typer.Argument(help="Folder of the run: prepared people, samples, networks.")]
Media = Annotated[Path, typer.Option(help="Folder with clips/ and portraits/ (docs/nano.md lists them).")]


@app.command()
def train(
    run: Run,
    media: Media,
    people: Annotated[Path | None, typer.Option(help="Those that `recipes.nano prepare` made already.")] = None,
    files: int = 42,
    per_file: int = 2000,
    scenes: int = 795,
    steps: int | None = None,
    processes: int = 2,
    seed: int = 1247,
) -> None:
    """Prepare people as nano's recipe does, draw samples, and train two rounds.

    What is there already is kept: people, samples, the first round. --files, --per-file, --scenes, --steps (of
    each round): less, to try it.
    """
    import torch

    from latentsync.face.occlusion import CoverNet
    from recipes.nano.data import load_people, prepare

    from .data import load_samples, make_faces, sample_file, write_samples
    from .train import ROUNDS, Round, train

    if people is None:
        people = run / "people"
        prepare(media, people, processes=processes, on_item=show)
    folder = run / "samples"
    if not all(sample_file(folder, number).exists() for number in range(files)):
        faces = make_faces(load_people(people), scenes, seed)
        for path in write_samples(faces, folder, files, seed, per_file=per_file, processes=processes):
            show(f"{path} written")
    pixels, masks = load_samples(folder, files)
    torch.manual_seed(seed)
    net = CoverNet()
    for number, settings in enumerate(ROUNDS):
        path = run / f"round{number}.pt"
        if path.exists():
            net.load_state_dict(torch.load(path, weights_only=True))
            continue
        chosen = settings if steps is None else Round(steps, settings.learning_rate)
        net = train(net.train(), pixels, masks, chosen, seed=seed + number, on_report=show)
        torch.save(net.state_dict(), path)
        show(f"{path} written")


@app.command()
def judge(media: Media, network: Path | None = None, only: str = "*", clean: bool = True) -> None:
    """Put things over clips and count what is found of them; then count alarms in clips with nothing over the face.

    --network: a file of `export`; else the built-in one. --only: a pattern of clip names.
    """
    from latentsync.face.detect import FaceFinder
    from latentsync.face.occlusion import ASSET
    from latentsync.weights.registry import find
    from recipes.nano.data import CLIPS, STRANGERS, clip_paths

    from .judge import KNOWN, THINGS, Count, clip_of, false_alarms, judge_clip
    from .judge import network as used

    rows = {name: Count() for name in (*THINGS, "strangers", "known people", "all")}
    with used(network or ASSET), FaceFinder(find("face_landmarker.task")) as finder:
        for group, patterns in (("strangers", STRANGERS), ("known people", KNOWN)):
            for number, path in enumerate(p for p in clip_paths(media, patterns) if p.match(only)):
                clip = clip_of(path, finder)
                for k, (name, thing) in enumerate(THINGS.items()):
                    counted = judge_clip(clip, thing, finder, still=(number + k) % 2 == 1)
                    for row in (name, group, "all"):
                        rows[row].add(counted)
                show(path.name)
        for name, count in rows.items():
            if count.frames:
                show(name, count.row())
        if clean:
            seen = [false_alarms(p, finder) for p in clip_paths(media, (*CLIPS, *STRANGERS)) if p.match(only)]
            show({"clean frames": sum(n for _, n in seen), "reported": sum(n for n, _ in seen)})


@app.command()
def export(run: Run, out: Path) -> None:
    """Write the mean of the rounds as one fp16 file."""
    import torch

    from latentsync.face.occlusion import CoverNet

    from .train import ROUNDS, export

    nets = [CoverNet() for _ in ROUNDS]
    for number, net in enumerate(nets):
        net.load_state_dict(torch.load(run / f"round{number}.pt", weights_only=True))
    show(f"wrote {export(nets, out)}")


if __name__ == "__main__":
    app()
