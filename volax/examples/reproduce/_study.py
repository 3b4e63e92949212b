"""How a study finds the best setting of each method, and what it leaves behind."""

import itertools
import json
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from tqdm import tqdm

from volax.examples import _machine
from volax.examples._files import replace_file, write_json
from volax.examples.data import IMAGES, Loaded, load
from volax.examples.reproduce._runs import Row, Runs, plain

VALIDATION = 1 / 6  # of the training examples
_NAMES = ("version", "case", "method", "setting", "seed", "split")

Setting = Mapping[str, Any]


class Method(NamedTuple):
    """A way to train and the settings of it that are tried."""

    name: str
    grid: Sequence[Setting]


class Task(NamedTuple):
    """All that one run depends on."""

    case: Setting  # what the methods of a comparison share: data set, noise, sizes
    method: str
    setting: Setting
    seed: int
    split: str  # whose examples it is judged by: "validation" or "test"


Train = Callable[[Task], Row]  # makes the run of a task: its figures by their names


class Chosen(NamedTuple):
    """The best setting of a method in a case, and what it does on the test examples."""

    case: Setting
    method: str
    setting: Setting
    tried: list[Row]  # all settings, with `value` and `figures` on validation examples
    runs: list[Row]  # the figures on the test examples, one row a seed

    def values(self, figure: str) -> list[float]:
        """A figure of each seed; NaN where it was not finite."""
        return [_number(row[figure]) for row in self.runs]

    def mean(self, figure: str) -> float:
        """The mean of a figure over the seeds; NaN where one was not finite."""
        return statistics.fmean(self.values(figure))

    def spread(self, figure: str) -> float:
        """The standard deviation over the seeds; 0 of one seed alone."""
        values = self.values(figure)
        return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0

    def cell(self, figure: str, scale: float = 100, digits: int = 2) -> str:
        """Mean and spread for a table, in per cent."""
        mean, spread = scale * self.mean(figure), scale * self.spread(figure)
        if not math.isfinite(mean):
            return "not finite"
        return f"{mean:.{digits}f} ± {spread:.{digits}f}"


class Aim(NamedTuple):
    """A claim, whether the figures of this run bear it out, and these figures."""

    claim: str
    holds: bool
    figures: str

    def __str__(self) -> str:
        verdict = "Holds" if self.holds else "Does not hold"
        return f"{verdict}: {self.claim} ({self.figures})."


class Result(NamedTuple):
    """What a study found."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    text: str  # a paragraph made of the figures
    aims: Sequence[Aim]
    figures: Mapping[str, Any]  # for the JSON file
    draw: Callable[[Figure], Any]


class Trials:
    """The runs of one study, made where the file does not hold them.

    Args:
      path: the file of runs.
      version: of the meaning of the study's code.
      seeds: how many a chosen setting is trained with.
      data_dir: where the data are; may be empty.
      quick: whether digits take the place of images that are nowhere, which are
        fetched otherwise.
    """

    def __init__(
        self,
        path: Path,
        version: int,
        seeds: int,
        data_dir: str = "",
        quick: bool = False,
    ):
        self.seeds, self.data_dir, self.quick = seeds, data_dir, quick
        self.machines: dict[str, Row] = {}
        self._seconds: dict[str, float] = {}
        self._version = version
        self._runs = Runs(path, _NAMES)
        self._known: tuple[Any, Loaded] | None = None
        # Off where the output is not a terminal; then each run has a line.
        self._bar = tqdm(total=0, desc=path.stem, unit="run", disable=None)

    def __enter__(self) -> "Trials":
        return self

    def __exit__(self, *exception) -> None:
        self._bar.close()

    @property
    def seconds(self) -> float:
        """Of training, of all runs that were asked for, each counted once."""
        return sum(self._seconds.values())

    def source(self, dataset: str, per_class: int) -> dict[str, Any]:
        """What a case says of its data; 0 images of each class are all."""
        if self.quick and not self.data_dir and dataset in IMAGES:
            dataset, per_class = "digits", 0
        return {"dataset": dataset, "per_class": per_class}

    def data(self, task: Task, **options: Any) -> Loaded:
        """The examples of a task, on the device.

        Args:
          task: its case has what `source` gives, its seed draws noise and subsets, and
            its split says which examples are judged.
          **options: of `volax.examples.data.load`.
        """
        share = VALIDATION if task.split == "validation" else 0.0
        options |= {"validation": share, "seed": task.seed}
        options["per_class"] = task.case["per_class"]
        key = task.case["dataset"], options
        if self._known is None or self._known[0] != key:
            loaded = load(task.case["dataset"], self.data_dir, **options)
            arrays = jax.tree.map(jnp.asarray, loaded.dataset)
            self._known = key, loaded._replace(dataset=arrays)
        return self._known[1]

    def expect(self, count: int) -> None:
        """Tell the bar that so many runs are to come."""
        self._bar.total += count
        self._bar.refresh()

    def run(self, task: Task, train: Train) -> Row:
        """The figures of a task, trained where they are not known."""
        settings = {"version": self._version, **task._asdict()}
        is_known = settings in self._runs
        row = self._runs(settings, lambda: _timed(task, train))
        self._seconds[json.dumps(plain(settings))] = row["seconds"]
        self.machines.setdefault(json.dumps(row["machine"]), row["machine"])
        self._bar.update()
        figures = {k: v for k, v in row.items() if k not in (*settings, "machine")}
        if self._bar.disable and not is_known:
            print(json.dumps({**task._asdict(), **_scalars(figures)}), flush=True)
        return figures

    def search(
        self,
        cases: Sequence[Setting],
        methods: Sequence[Method],
        train: Train,
        by: str | Callable[[Row], float | None],
    ) -> list[Chosen]:
        """Find the best setting of each method in each case, and test it.

        Each setting is tried with one seed on validation examples, taken off the
        training side; the best is then trained on all of that side with every seed and
        judged by the test examples. A figure that is not finite is the worst.

        Args:
          cases: what is compared anew.
          methods: with grids of one size, so that none is searched for longer.
          train: makes a run.
          by: the figure of which more is better, or a function that makes it of a
            run's figures.

        Returns:
          The choices, the methods of the first case first.
        """
        sizes = {method.name: len(method.grid) for method in methods}
        if len(set(sizes.values())) != 1:
            raise ValueError(f"the methods have grids of different sizes: {sizes}")
        self.expect(len(cases) * len(methods) * (len(methods[0].grid) + self.seeds))
        return [
            self._best(case, method, train, by)
            for case, method in itertools.product(cases, methods)
        ]

    def _best(self, case: Setting, method: Method, train: Train, by: Any) -> Chosen:
        tried = []
        for setting in method.grid:
            task = Task(case, method.name, setting, 0, "validation")
            row = self.run(task, train)
            value = by(row) if callable(by) else row[by]
            tried.append({"setting": setting, "value": value, "figures": _scalars(row)})
        best = max(tried, key=lambda row: worst_if_nan(row["value"]))["setting"]
        runs = [
            self.run(Task(case, method.name, best, seed, "test"), train)
            for seed in range(self.seeds)
        ]
        return Chosen(case, method.name, best, tried, runs)


def _timed(task: Task, train: Train) -> Row:
    """The figures of a run, with the seconds it took and where."""
    began = time.perf_counter()
    figures = plain(train(task))
    seconds = round(time.perf_counter() - began, 2)
    return {**figures, "seconds": seconds, "machine": _machine.place()}


def _scalars(figures: Row) -> Row:
    """The figures without curves."""
    return {k: v for k, v in figures.items() if not isinstance(v, list | dict)}


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def worst_if_nan(value: float | None) -> float:
    """What a figure is ranked by: one that is not finite is the worst."""
    return -math.inf if value is None or math.isnan(value) else value


def by_case(chosen: Sequence[Chosen], key: str) -> dict[Any, dict[str, Chosen]]:
    """The choices by a value of their case, and by method."""
    found: dict[Any, dict[str, Chosen]] = {}
    for best in chosen:
        found.setdefault(best.case[key], {})[best.method] = best
    return found


def told(setting: Setting) -> str:
    """A setting in a cell of a table."""
    return ", ".join(f"{key} {_short(value)}" for key, value in setting.items()) or "-"


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def reproduce(
    name: str,
    version: int,
    run: Callable[[Trials, Any], Result],
    size: Any,
    *,
    command: str,
    folder: Path,
    seeds: int,
    data_dir: str = "",
    quick: bool = False,
) -> str:
    """Run a study, and write its three files, each in one step.

    Args:
      name: of the study, and of the files.
      version: of the meaning of its code.
      run: measures what a size asks for.
      size: how much is measured.
      command: that makes the files.
      folder: where they are written.
      seeds: how many a chosen setting is trained with.
      data_dir: where the data are.
      quick: as for `Trials`.

    Returns:
      The Markdown.
    """
    path = folder / f"{name}.jsonl"
    with Trials(path, version, seeds, data_dir, quick) as trials:
        result = run(trials, size)
    machines = list(trials.machines.values())
    text = _markdown(name, command, result, trials.seconds, machines)
    aims = [aim._asdict() for aim in result.aims]
    about = {"title": result.title, "command": command, "seeds": seeds}
    about |= {"seconds": round(trials.seconds), "machines": machines}
    about |= {"text": result.text, "aims": aims, "figures": result.figures}
    write_json(folder / f"{name}.json", plain(about))
    figure = Figure(layout="constrained", dpi=150)
    result.draw(figure)
    picture = folder / f"{name}.png"
    replace_file(picture, lambda path: figure.savefig(path, format="png"))
    replace_file(folder / f"{name}.md", lambda path: path.write_text(text))
    return text


def _markdown(
    name: str, command: str, result: Result, seconds: float, machines: Sequence[Row]
) -> str:
    rule = ["---"] * len(result.head)
    table = [f"| {' | '.join(row)} |" for row in (result.head, rule, *result.rows)]
    where = "; ".join(map(_machine.told, machines))
    parts = [
        f"## {name}: {result.title}",
        f"`{command}`: {_duration(seconds)} of training on {where}.",
        "\n".join(table),
        result.text,
        "\n".join(f"- {aim}" for aim in result.aims),
        f"![{result.title}]({name}.png)",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes < 2:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 120 else f"{minutes / 60:.1f} h"
