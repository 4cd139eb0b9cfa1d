"""`latentsync eval pairs` and `eval runs`: a test set, and several runs on it side by side."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import UserError
from ..settings import Settings
from .console import check_writable, write_file
from .eval import (
    Face,
    Findings,
    MetricOptions,
    OutputOptions,
    QualityOptions,
    SyncNetOptions,
    compare_all,
    load_networks,
    measure_all,
)
from .parameters import option

if TYPE_CHECKING:
    from ..evaluation.runs import Values


def pairs(
    videos: Annotated[Path, typer.Argument(help="A folder of videos.")],
    speech: Annotated[Path, typer.Argument(help="A folder of speech: sounds, or else videos.")],
    out: Annotated[Path, option(None, "--out -o", "The list to write, for `latentsync batch`.", "CSV")] = Path(
        "pairs.csv"
    ),
    count: Annotated[int, option(None, "--count", "How many pairs.", min=0, show_default="one for each video")] = 0,
    seed: Annotated[int, option(None, "--seed", "The same files and seed give the same pairs.")] = 1247,
) -> None:
    """Pair videos with speech from elsewhere, as a test set. No video gets its own speech.

    \b
      latentsync eval pairs videos/ speech/ --count 50 -o pairs.csv
      latentsync batch pairs.csv --out nano/
      latentsync batch pairs.csv --out mine/ -c mine.safetensors
      latentsync eval runs nano/ mine/ --picture runs.png

    `batch` continues where it stopped and skips what is done. You can also write the list yourself, with the columns
    video, audio and out.
    """
    from ..evaluation import pairs as work
    from ..evaluation.clips import videos as find_all

    check_writable(out)
    drawn = work.draw_pairs(list(find_all(videos).values()), work.speeches(speech), seed, count)
    kept = work.write_pairs(out, drawn)
    typer.echo(f"{out}: {len(drawn)} pairs{', already there' if kept else ''}")


def runs(
    places: Annotated[
        list[Path],
        typer.Argument(metavar="RUN…", help="Folders of results, or reports that `eval … --json` wrote of folders."),
    ],
    networks: SyncNetOptions,
    metrics: MetricOptions,
    quality: QualityOptions,
    output: OutputOptions,
    true: Annotated[
        Path | None, option(None, "--true", "Compare with true videos of the same names.", "FOLDER")
    ] = None,
    table: Annotated[
        Path | None, option("Output", "--csv", "Also write every clip of every run as CSV.", "CSV")
    ] = None,
    face: Face = Settings.face,
) -> None:
    """Compare several runs: checkpoints on the same list of pairs, in one table and chart.

    Means are over the clips that all runs have. * marks the best.
    """
    from ..evaluation.runs import draw_side_by_side, read_report, run_names, side_by_side

    output.check()
    check_writable(table)
    if len(places) < 2:
        raise UserError("One run has nothing beside it; give two or more, or use `eval measure`.")
    nets = load_networks(networks, quality, metrics)
    measured: dict[str, Mapping[str, Values]] = {}
    skipped: dict[str, str] = {}
    for name, place in zip(run_names(places), places, strict=True):
        if place.is_file():
            measured[name] = read_report(place)
            continue
        results, missing = compare_all(place, true, nets, face) if true else measure_all(place, nets, face)
        measured[name] = {result.name: result.values for result in results}
        skipped |= {f"{name}: {clip}": why for clip, why in missing.items()}
    found = side_by_side(measured, skipped)
    if table is not None:
        write_file(table, found.as_csv().encode())
    titles = ("measure", "better", *found.runs, "clips")
    title = f"{len(found.runs)} runs, {len(found.clips)} clips"
    draw = lambda: draw_side_by_side(found)  # noqa: E731
    Findings(title, titles, found.rows(), list(found.skipped.items()), found.as_dict(), draw).show(output)
