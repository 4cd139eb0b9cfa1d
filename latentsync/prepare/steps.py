"""Steps one after another over one item, each written down when it is done, so that a later run goes on from there."""

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from .workspace import read_json, write_json

if TYPE_CHECKING:
    from .worker import Shop

VERSION = 1
"""Of the steps; a change of what they do must raise it, so that old results are made anew."""

Facts = dict[str, Any]


class Dropped(Exception):
    """This item ends here. reason: one of reasons.REASONS. detail: a sentence. facts: what was measured before."""

    def __init__(self, reason: str, detail: str, **facts: Any) -> None:
        super().__init__(detail)
        self.reason, self.detail, self.facts = reason, detail, facts


@dataclass(frozen=True)
class Item:
    """A source (start = stop = 0) or a piece of it: frames start … stop at 25 a second.

    source: path below the input folder, with slashes. key: says what the item was made from and how.
    """

    id: str
    source: str
    start: int = 0
    stop: int = 0
    key: str = ""


@dataclass(frozen=True)
class Step:
    """run gets the facts of the steps before it and gives its own. fault: the reason given where its input is damaged.

    options: what its result depends on besides those. files: what it leaves for later steps. skipped: run instead.
    """

    name: str
    run: Callable[["Shop", Item, Facts], Facts]
    fault: str
    options: Callable[["Shop", Item], Any] = lambda shop, item: None
    files: Callable[["Shop", Item], tuple[Path, ...]] = lambda shop, item: ()
    skipped: Callable[["Shop", Item, Facts], Facts] = lambda shop, item, facts: {}


@dataclass
class Outcome:
    """What became of an item. steps: name, key, facts, drop ([reason, detail] or None) of each step that was taken.

    seconds: what the steps that ran now took. error: why a step could not be finished (it is tried again next time).
    stop: why the whole run must end.
    """

    item: Item
    steps: list[dict[str, Any]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    error: str | None = None
    stop: str | None = None

    @property
    def facts(self) -> Facts:
        return {key: value for step in self.steps for key, value in step["facts"].items()}

    @property
    def drop(self) -> tuple[str, str, str] | None:
        """(step, reason, detail)."""
        last = self.steps[-1] if self.steps else None
        return (last["step"], *last["drop"]) if last and last["drop"] else None

    def key(self, step: str) -> str:
        return next(s["key"] for s in self.steps if s["step"] == step)

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Outcome":
        facts = json.loads(text)
        return cls(**facts | {"item": Item(**facts["item"])})


def run_chain(steps: Sequence[Step], shop: "Shop", item: Item, state: Path) -> Outcome:
    """Take the steps that are not yet written down in the file `state`, or no longer hold."""
    outcome, left = known(steps, shop, item, state)
    for step, key in left:
        start = time.perf_counter()
        facts, drop = _take(step, shop, item, outcome.facts)
        outcome.seconds[step.name] = time.perf_counter() - start
        outcome.steps.append({"step": step.name, "key": key, "facts": facts, "drop": drop})
        write_json(state, outcome.steps)
        if drop:
            break
    return outcome


def known(steps: Sequence[Step], shop: "Shop", item: Item, state: Path) -> tuple[Outcome, Sequence[tuple[Step, str]]]:
    """What is written down and holds, and the steps that are left, with their keys."""
    keys = _keys(steps, shop, item)
    outcome = Outcome(item, _valid(steps, shop, item, read_json(state) or [], keys))
    return outcome, () if outcome.drop else list(zip(steps, keys, strict=True))[len(outcome.steps) :]


def _take(step: Step, shop: "Shop", item: Item, facts: Facts) -> tuple[Facts, list[str] | None]:
    run = step.skipped if step.name in shop.settings.skip else step.run
    try:
        return run(shop, item, facts), None
    except Dropped as drop:
        return drop.facts, [drop.reason, drop.detail]
    except UserError as error:  # the engine's way to say that a file is damaged
        return {}, [step.fault, str(error).replace(str(shop.path(item)), item.source)]


def _keys(steps: Sequence[Step], shop: "Shop", item: Item) -> list[str]:
    """A step's key stands for the step's options and for all that came before."""
    keys, before = [], item.key
    for step in steps:
        options = "skipped" if step.name in shop.settings.skip else step.options(shop, item)
        before = hashlib.sha256(json.dumps([VERSION, before, step.name, options]).encode()).hexdigest()[:16]
        keys.append(before)
    return keys


def _valid(
    steps: Sequence[Step], shop: "Shop", item: Item, known: list[dict[str, Any]], keys: Sequence[str]
) -> list[dict[str, Any]]:
    """The written steps that still hold: same keys and, unless the item was dropped, their files in place."""
    same = 0
    while same < min(len(known), len(keys)) and known[same]["key"] == keys[same]:
        same += 1
    if same and known[same - 1]["drop"]:
        return known[:same]
    for number, step in enumerate(steps[:same]):
        if step.name not in shop.settings.skip and not all(path.is_file() for path in step.files(shop, item)):
            return known[:number]
    return known[:same]
