"""The studies of the papers' claims: runs kept, settings chosen, files written."""

import json
import math

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import volax
from volax.examples.reproduce import __main__ as command
from volax.examples.reproduce import (
    _study,
    discovery,
    few_bit,
    interpolation,
    label_noise,
    p_sweep,
    path_convergence,
    shrink,
)
from volax.examples.reproduce._collect import collect
from volax.examples.reproduce._runs import Runs
from volax.examples.reproduce._study import Aim, Chosen, Method, Result, Trials

CASE = {"dataset": "none", "per_class": 0}


class Figures:
    """Stands for training: figures by setting and split, and what was asked for."""

    def __init__(self, validation, test):
        self.values, self.asked = {"validation": validation, "test": test}, []

    def __call__(self, task):
        self.asked.append((task.split, task.setting["x"], task.seed))
        value = self.values[task.split][task.setting["x"]]
        return {"good": np.float32(value + 0.1 * task.seed * (task.split == "test"))}


def test_a_run_is_made_once_and_reads_as_it_was_written(tmp_path):
    made = []

    def make():
        made.append(1)
        return {"loss": math.nan, "curve": np.arange(2.0, dtype=np.float32) / 10}

    for _ in range(2):
        runs = Runs(tmp_path / "runs", ("a", "b"))
        first = runs({"a": (1, 0.1), "b": {"y": 1, "x": 2}}, make)
        again = runs({"a": [1, 0.1], "b": {"x": 2, "y": 1}}, make)
        expected = {"a": [1, 0.1], "b": {"x": 2, "y": 1}, "loss": None}
        assert first == again == expected | {"curve": [0, 0.1]}
    assert len(made) == 1
    runs({"a": [1, 0.1], "b": 2}, make)
    assert len(made) == 2


@pytest.mark.parametrize(
    "damage",
    [lambda text: text[:-9], lambda text: text.replace('"a"', '"c"')],
    ids=["killed-while-writing", "other-names"],
)
def test_a_damaged_line_is_made_again_and_the_others_stay(tmp_path, damage):
    path = tmp_path / "runs"
    runs = Runs(path, ("a",))
    for a in range(2):
        runs({"a": a}, lambda: {"value": 1})
    first, second = path.read_text().splitlines(keepends=True)
    path.write_text(first + damage(second))
    with pytest.warns(match="runs, line 2, is no run with a; it is left out"):
        runs = Runs(path, ("a",))
    assert {"a": 0} in runs
    assert {"a": 1} not in runs
    assert runs({"a": 1}, lambda: {"value": 2})["value"] == 2
    with pytest.warns(match="line 2"):
        again = Runs(path, ("a",))
    assert [row["value"] for row in again.rows.values()] == [1, 2]


def test_the_best_on_validation_is_tested_with_every_seed(tmp_path):
    # The setting that is the best on the test examples is not that of the validation.
    figures = Figures([0.5, 0.8, math.nan], [0.9, 0.6, 1.0])
    method = Method("one", [{"x": x} for x in (2, 0, 1)])
    with Trials(tmp_path / "runs", 1, seeds=2) as trials:
        (best,) = trials.search([CASE], [method], figures, by="good")
    assert best.setting == {"x": 1}
    assert [row["value"] for row in best.tried] == [None, 0.5, 0.8]
    validation = [("validation", x, 0) for x in (2, 0, 1)]
    assert figures.asked == [*validation, ("test", 1, 0), ("test", 1, 1)]
    assert best.mean("good") == pytest.approx(0.65)
    assert best.spread("good") == pytest.approx(0.1 / math.sqrt(2))
    assert best.cell("good") == "65.00 ± 7.07"
    for version, more in ((1, 0), (2, 5)):
        before = len(figures.asked)
        with Trials(tmp_path / "runs", version, seeds=2) as trials:
            (again,) = trials.search([CASE], [method], figures, by="good")
        assert (again.setting, again.tried) == (best.setting, best.tried)
        assert len(figures.asked) == before + more


def test_a_method_that_never_ends_finite_is_shown(tmp_path):
    figures = Figures([math.inf], [math.nan])
    with Trials(tmp_path / "runs", 1, seeds=1) as trials:
        method = Method("one", [{"x": 0}])
        (best,) = trials.search([CASE], [method], figures, by="good")
    assert best.cell("good") == "not finite"


def test_a_search_is_of_one_size_for_all(tmp_path):
    methods = [Method("one", [{}]), Method("two", [{}, {}])]
    with (
        Trials(tmp_path / "runs", 1, seeds=1) as trials,
        pytest.raises(ValueError, match=r"grids of different sizes: .*'two': 2"),
    ):
        trials.search([CASE], methods, lambda task: {}, by="good")


def _fake(name, folder, holds=True):
    """Writes the files of a study that measured nothing."""

    def run(trials, size):
        return Result(
            title="title",
            head=["a", "b"],
            rows=[["1", "2"]],
            text="Text.",
            aims=[Aim("it is so", holds, "1 and 2")],
            figures={"x": 1},
            draw=lambda figure: figure.subplots().plot([0, 1]),
        )

    given = {"command": "command", "folder": folder, "seeds": 1}
    return _study.reproduce(name, 1, run, None, **given)


def test_the_tables_are_collected_with_their_pictures(tmp_path):
    folder = tmp_path / "results"
    folder.mkdir()
    with pytest.raises(command.UserError, match="the results of no study"):
        collect(folder, ["one", "two"], tmp_path / "RESULTS.md")
    _fake("two", folder)
    said = collect(folder, ["one", "two"], tmp_path / "RESULTS.md")
    assert said.endswith("RESULTS.md: two; not run yet: one")
    text = (tmp_path / "RESULTS.md").read_text()
    assert "## two: title" in text
    assert "| a | b |\n| --- | --- |\n| 1 | 2 |" in text
    assert "- Holds: it is so (1 and 2)." in text
    assert "![title](results/two.png)" in text
    _fake("two", folder, holds=False)
    assert "- Does not hold: it is so" in (folder / "two.md").read_text()
    assert json.loads((folder / "two.json").read_text())["figures"] == {"x": 1}
    assert not list(folder.glob(".*"))


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["label-nose"], 2, "no study 'label-nose'; did you mean 'label-noise'?"),
        ([], 2, "required: NAME"),
        (["all", "--seeds=0"], 2, "argument --seeds: expected 1 or more, got '0'"),
        (["all", "--sede=1"], 2, "unrecognized arguments: --sede=1"),
        (["collect"], 1, "holds the results of no study; run one first"),
        (["collect", "--results=file/x"], 1, "Not a directory"),
        (["all", "--data_dir=x"], 2, "--data_dir: there is no folder 'x'"),
    ],
)
def test_a_mistake_is_one_sentence(
    tmp_path, monkeypatch, capsys, arguments, code, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as ended:
        command.run(arguments)
    out, err = capsys.readouterr()
    assert ended.value.code == code
    assert message in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert not out


TINY = {"mlp": {"hidden": (8,)}}
STUDIES = {
    "few-bit": (few_bit, few_bit.Size([("mnist", "mlp", 1, 0)], TINY, 1, ["ternary"])),
    "label-noise": (label_noise, label_noise.Size((0.5,), 16, 1, 0, 1)),
    "interpolation": (interpolation, interpolation.Size(3, 9, 2, 50, 8, 1, 0, 8)),
    "path-convergence": (
        path_convergence,
        path_convergence.Size(
            (path_convergence.Recipe("MNIST subset", 0, 14),),
            hidden=8,
            strength=0.1,
            batch=200,
            points=2,
            rates=(0.1,),
            methods=("decay", "project"),
        ),
    ),
    "p-sweep": (
        p_sweep,
        p_sweep.Size(
            (p_sweep.Net("mlp", {"hidden": [8]}, "mnist", 0, 2, 200, 0.01),),
            powers=(0.5,),
            settings=1,
        ),
    ),
    "discovery": (discovery, discovery.Size(("mlp", "zoo MobileNet"))),
    "shrink": (
        shrink,
        shrink.Size(
            (
                shrink.Net(
                    "mlp", "mnist", 0, 3, 200, 0.01, {"hidden": [8]}, [{"hidden": [4]}]
                ),
            ),
            factors=(1,),
            methods=("trained small", "keep_units"),
        ),
    ),
}


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_writes_its_files_and_trains_nothing_twice(
    name, tmp_path, monkeypatch, capsys
):
    module, size = STUDIES[name]
    monkeypatch.setattr(module, "QUICK", size)
    # The other tests of this process would compile all of theirs again.
    monkeypatch.setattr("jax.clear_caches", lambda: None)
    monkeypatch.delenv("VOLAX_DATA_DIR", raising=False)
    given = [name, "--quick", "--seeds=1", f"--results={tmp_path}"]
    command.run(given)
    rows = (tmp_path / f"{name}.jsonl").read_text()
    first = capsys.readouterr().out
    table = [line for line in first.splitlines() if line.startswith("| ")]
    assert len(table) > 2
    assert all(line.count("|") == table[0].count("|") for line in table)
    written = json.loads((tmp_path / f"{name}.json").read_text())
    assert written["aims"]
    assert f"reproduce {name} --quick --seeds=1" in written["command"]
    assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    command.run(given)
    assert (tmp_path / f"{name}.jsonl").read_text() == rows
    assert (
        capsys.readouterr().out.strip() == (tmp_path / f"{name}.md").read_text().strip()
    )


def _chosen(method, noise, last, best):
    """What a method came to with two seeds."""
    rows = [{"last": x, "best": best} for x in last]
    return Chosen({"noise": noise}, method, {}, [], rows)


@pytest.mark.parametrize(
    ("last", "best", "verdicts"),
    [
        ([0.965, 0.955], 0.97, [True, True, True]),
        ([0.95, 0.93], 0.97, [False, True, False]),
        ([0.92, 0.92], 0.925, [True, False, False]),
        ([0.96, None], 0.97, [False, False, False]),
    ],
    ids=["all-hold", "falls", "below-adamw", "not-finite"],
)
def test_what_is_claimed_of_wrong_labels_follows_from_the_figures(last, best, verdicts):
    chosen = [
        _chosen("AdamW", 0.5, [0.93, 0.93], 0.96),
        _chosen("volumized", 0.5, last, best),
    ]
    assert [aim.holds for aim in label_noise._aims(chosen)] == verdicts


def test_the_error_is_bias_and_variance():
    rng = np.random.default_rng(0)
    guesses, answer = rng.normal(size=(7, 5, 3)), rng.normal(size=(5, 3))
    found = interpolation._split(jnp.asarray(guesses), jnp.asarray(answer))
    error = np.square(guesses - answer).sum(-1).mean()
    variance = guesses.var(0).sum(-1).mean()
    assert float(found["error"]) == pytest.approx(error, rel=1e-5)
    assert float(found["variance"]) == pytest.approx(variance, rel=1e-5)
    parts = float(found["bias"] + found["variance"])
    assert parts == pytest.approx(error, rel=1e-5)


def test_straight_through_is_the_rounded_network_with_its_gradient():
    net = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    x = jnp.asarray([[1.0, -2.0, 0.5]])
    through = few_bit.StraightThrough(net, volax.ternarize)
    rounded = nnx.clone(net)
    rounded.kernel[...] = volax.ternarize({"k": net.kernel[...]})["k"]
    np.testing.assert_allclose(through(x), rounded(x), rtol=1e-6)

    def gradient(model, kernel):
        return kernel(nnx.grad(lambda m: (m(x) ** 2).sum())(model))

    own = gradient(through, lambda tree: tree["net"]["kernel"][...])
    expected = gradient(rounded, lambda tree: tree["kernel"][...])
    np.testing.assert_allclose(own, expected, rtol=1e-6)
