import csv
import itertools
import json
import runpy
import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from conftest import CONFIGS
from test_data import write_batches

import volax
from volax.examples import _figures, train
from volax.examples._errors import UserError
from volax.examples._files import replace_file, sole_run
from volax.examples._optimizers import build_optimizers
from volax.examples._setup import network
from volax.examples.data import load, load_dataset
from volax.examples.loop import Loop
from volax.examples.train import train_and_evaluate

SETS = sorted(p.stem for p in CONFIGS.glob("*.py") if p.stem != "default")
REGULARIZERS = runpy.run_path(str(CONFIGS / "default.py"))["REGULARIZERS"]
SMALL = {
    "model.mlp.hidden": (16,),
    "per_class": 4,
    "batch_size": 8,
    "checkpoint_seconds": 0.0,
}


@pytest.fixture
def small(load_config, monkeypatch):
    """Gives a tiny version of a config, to be trained without drawing curves."""
    monkeypatch.setattr(_figures, "plot_curves", lambda *args: None)

    def load(name="digits:path_prox", **overrides):
        return load_config(name, **{**SMALL, "epochs": 3, **overrides})

    return load


@pytest.fixture
def interrupt(monkeypatch):
    """Makes training stop like Ctrl-C after so many more calls; None undoes it."""
    build = train.build_epochs

    def after(count):
        left = itertools.count() if count is None else iter(range(count))

        def build_interrupted(*args):
            epochs = build(*args)

            def run(state, first, count):
                if next(left, None) is None:
                    raise KeyboardInterrupt
                return epochs(state, first, count)

            return run

        monkeypatch.setattr(train, "build_epochs", build_interrupted)

    return after


def final_state(workdir, run):
    folder = workdir / "checkpoints" / run
    step = max(int(path.name) for path in folder.iterdir())
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(folder.absolute() / str(step) / "state")


def assert_same_run(one, other):
    for name in ("metrics.csv", "report.json"):
        assert (one / name).read_bytes() == (other / name).read_bytes()
    for run in ("plain", "regularized"):
        chex.assert_trees_all_equal(final_state(one, run), final_state(other, run))


@pytest.mark.parametrize("regularizer", REGULARIZERS)
@pytest.mark.parametrize("name", SETS)
def test_every_config_makes_two_optimizers(name, regularizer, load_config):
    config = load_config(f"{name}:{regularizer}")
    pair = volax.pairs.Groups((volax.pair("l1/kernel", "l2/kernel"),))
    plain, regularized = build_optimizers(config, 10, pair)
    params = {"l1": {"kernel": jnp.ones((2, 3))}, "l2": {"kernel": jnp.ones((3, 1))}}
    structures = [jax.tree.structure(tx.init(params)) for tx in (plain, regularized)]
    assert structures[0] != structures[1] or regularizer == "path_prox"


# Each data set and each regularizer once, with a model that is tiny. The whole trainer
# runs with one of them, the loop with the others.
WHOLE = {
    "shakespeare:keep_units": {
        "epochs": 3,
        "length": 16,
        "model.gpt.width": 16,
        "model.gpt.layers": 1,
        "model.gpt.heads": 2,
        "tensorboard": True,
        "average": 0.9,
    },
}
LOOPS = {
    "digits:adamw": {"epochs": 3},
    "mnist:lp_decay": {"model.name": "lenet", "model.lenet.widths": (4, 4, 16, 16)},
    "fashion_mnist:path_prox": {"path_prox.strength": 0.6},
    "cifar10:group_prox": {
        "augment": False,
        "model.dtype": "bfloat16",
        "model.resnet18.width": 4,
        "model.resnet18.blocks": (1,),
    },
    "rt_polarity:volumize": {
        "epochs": 6,
        "model.encoder.width": 16,
        "model.encoder.layers": 1,
        "optimizer.accumulate": 2,
    },
}
# Of a test label by chance: 0.1, about 0.16 for the commonest letter, and 0.5.
LEAST = {"shakespeare": 0.2, "rt_polarity": 0.6, "cifar10": 0.4}


@pytest.fixture
def tiny(load_config, write_idx, tmp_path):
    """Gives a config with a tiny model and files of a data set that can be learned."""

    def load(name):
        overrides = (WHOLE | LOOPS)[name]
        given = {
            "epochs": 4,
            "optimizer.learning_rate": 0.01,
            "data_dir": str(tmp_path),
        }
        config = load_config(name, **{**SMALL, "per_class": 0, **given, **overrides})
        if config.dataset in ("mnist", "fashion_mnist"):
            write_idx(tmp_path, train=200)
        if config.dataset == "cifar10":
            write_batches(tmp_path, {"data_batch_1": 200, "test_batch": 50})
        return config, LEAST.get(config.dataset, 0.8)

    return load


def test_each_data_set_and_regularizer_is_trained():
    names, kinds = zip(*(name.split(":") for name in WHOLE | LOOPS))
    assert sorted(names) == SETS
    assert sorted(kinds) == sorted(REGULARIZERS)


@pytest.mark.parametrize("name", WHOLE)
def test_a_config_trains(name, tiny, tmp_path, capsys):
    config, least = tiny(name)
    report = train_and_evaluate(config, tmp_path / "run")
    plain, regularized, *_ = report["models"].values()
    assert plain != regularized
    assert min(plain["test_accuracy"], regularized["test_accuracy"]) >= least
    written = json.loads((tmp_path / "run/report.json").read_text())
    assert written["models"] == report["models"]
    out = capsys.readouterr().out
    for label in report["models"]:
        assert label in out
    expected = {"metrics.csv", "report.json", "curves.png", "config.json"}
    expected |= {"checkpoints", "tensorboard", "small.safetensors"}
    assert {path.name for path in (tmp_path / "run").iterdir()} == expected
    assert report["sample"] in out
    assert len(set(report["sample"])) > 5
    assert plain["average_accuracy"] > least


@pytest.mark.parametrize("name", LOOPS)
def test_a_network_learns_with_its_regularizer(name, tiny):
    config, least = tiny(name)
    loaded = load(config.dataset, config.data_dir)
    data = jax.tree.map(jnp.asarray, loaded.dataset)
    model = network(config, loaded, config.model.dtype)
    groups = volax.find_groups(model, data.test_inputs[:1])
    steps = len(data.train_labels) // config.batch_size * config.epochs
    _, tx = build_optimizers(config, steps, groups)
    loop = Loop(model, tx, config.batch_size)
    state, epoch = loop.start(), jax.jit(loop.epoch)
    before = volax.metrics(state.params, groups)
    for number in range(config.epochs):
        state, _ = epoch(state, number, data)
    _, hits = jax.jit(loop.evaluate)(state.params, state.rest, data)
    assert hits.mean() >= least
    after = volax.metrics(state.params, groups, volume=config.volumize.volume)
    if config.regularizer == "volumize":
        assert after["wall_share"] > 0
    elif config.regularizer == "lp_decay":
        assert after["zeros"] > 10 * before["zeros"] + 10
    elif config.regularizer != "adamw":
        assert after["path_norm"] < before["path_norm"]


def test_the_table_says_what_is_left(small, tmp_path, capsys):
    config = small(**{"path_prox.strength": 1.0, "per_class": 0, "epochs": 4})
    report = train_and_evaluate(config, tmp_path)
    plain, pruned, compacted = report["models"].values()
    alive = pruned["alive"]
    assert plain["alive"] == plain["units"] == 16
    assert 0 < alive < 16
    assert plain["weights"] == pruned["weights"] == 64 * 16 + 16 + 16 * 10 + 10
    assert plain["multiply_adds"] == 64 * 16 + 16 * 10
    assert compacted["weights"] == (64 + 1 + 10) * alive + 10
    assert compacted["multiply_adds"] == (64 + 10) * alive
    assert compacted["bytes"] == 4 * compacted["weights"]
    for key in ("test_accuracy", "worst_class_accuracy"):
        assert compacted[key] == pruned[key]
    size = (tmp_path / compacted["file"]).stat().st_size
    assert compacted["bytes_on_disk"] == size > compacted["bytes"]

    lines = capsys.readouterr().out.splitlines()
    row = next(line for line in lines if line.startswith("  alive"))
    shares = ["16", "(100.0%)", str(alive), f"({alive / 16:.1%})"]
    assert row.split()[1:] == [*shares, str(alive), "(100.0%)"]
    row = next(line for line in lines if line.startswith("test accuracy"))
    accuracies = [model["test_accuracy"] for model in (plain, pruned, compacted)]
    assert row.split()[2:] == [f"{a:.2%}" for a in accuracies]
    table = lines[lines.index(next(x for x in lines if x.startswith(" "))) :]
    assert len({len(line) for line in table}) == 1


def test_the_saved_model_is_the_trained_one(small, tmp_path, monkeypatch, capsys):
    config = small("digits:keep_units", epochs=2)
    report = train_and_evaluate(config, tmp_path)
    loaded = volax.load(tmp_path / "small.safetensors").params
    assert loaded["hidden0"]["kernel"].shape == (64, 2)  # an eighth of 16 units
    data = load_dataset("digits", per_class=4)
    hidden, out = loaded["hidden0"], loaded["out"]
    found = np.maximum(data.test_inputs @ hidden["kernel"] + hidden["bias"], 0)
    hits = (found @ out["kernel"] + out["bias"]).argmax(-1) == data.test_labels
    expected = report["models"]["compacted"]["test_accuracy"]
    np.testing.assert_allclose(hits.mean(), expected, atol=1e-6)

    # Without a proof there is no smaller model, and everything else is there.
    def refuse(*args, **options):
        raise ValueError("compact: the models differ")

    (tmp_path / "small.safetensors").unlink()
    monkeypatch.setattr(volax, "compact", refuse, raising=False)
    again = train_and_evaluate(config, tmp_path)
    assert [*again["models"]] == [*report["models"]][:2]
    assert "not compacted: compact: the models differ" in capsys.readouterr().out
    assert not (tmp_path / "small.safetensors").exists()


def test_volumize_keeps_every_weight_inside(small, tmp_path, capsys):
    config = small("digits:volumize", **{"volumize.volume": 0.05})
    report = train_and_evaluate(config, tmp_path)
    plain, bounded, *_ = report["models"].values()
    assert plain["largest"] > 0.05 >= bounded["largest"]
    assert 0 < bounded["wall_share"] < 1
    assert "at the wall of 0.05" in capsys.readouterr().out


def test_an_interrupted_run_ends_like_an_uninterrupted_one(small, interrupt, tmp_path):
    train_and_evaluate(small(), tmp_path / "whole")
    for calls in (0, 1, 3):  # at the start, in the plain run, in the regularized one
        interrupt(calls)
        with pytest.raises(KeyboardInterrupt):
            train_and_evaluate(small(), tmp_path / "parts")
    interrupt(None)
    train_and_evaluate(small(), tmp_path / "parts")
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_an_interruption_without_a_checkpoint_starts_again(small, interrupt, tmp_path):
    config = small(checkpoint_seconds=1e9)
    train_and_evaluate(config, tmp_path / "whole")
    for calls in (1, 3):  # the second one has finished the plain run
        interrupt(calls)
        with pytest.raises(KeyboardInterrupt):
            train_and_evaluate(config, tmp_path / "parts")
    interrupt(None)
    train_and_evaluate(config, tmp_path / "parts")
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_a_finished_run_prints_its_table_again(small, interrupt, tmp_path, capsys):
    train_and_evaluate(small(), tmp_path)
    first = capsys.readouterr().out
    with (tmp_path / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    names = [(row["run"], row["epoch"]) for row in rows]
    labels = ("sgd", "sgd + path_prox")
    assert names == [(label, str(n)) for label in labels for n in (1, 2, 3)]
    assert all(np.isfinite(float(row["loss"])) for row in rows)

    interrupt(0)
    train_and_evaluate(small(checkpoint_seconds=5.0), tmp_path)
    again = capsys.readouterr().out
    assert "multiply-adds" in again
    assert first.endswith(again)


def test_how_epochs_are_split_into_calls_changes_nothing(small, tmp_path):
    for seconds, folder in ((0.0, "one by one"), (1e9, "together")):
        config = small(epochs=12, checkpoint_seconds=seconds)
        train_and_evaluate(config, tmp_path / folder)
    one, other = tmp_path / "one by one", tmp_path / "together"
    assert (one / "metrics.csv").read_bytes() == (other / "metrics.csv").read_bytes()
    for run in ("plain", "regularized"):
        chex.assert_trees_all_equal(final_state(one, run), final_state(other, run))


def test_a_run_goes_on_from_before_a_damaged_checkpoint(small, tmp_path):
    train_and_evaluate(small(), tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    damaged = tmp_path / "parts/checkpoints/regularized/3"
    metadata = damaged / "state/_METADATA"
    metadata.write_bytes(metadata.read_bytes()[:20])
    with pytest.warns(UserWarning, match=f"{damaged} is damaged .* goes on from .*/2$"):
        train_and_evaluate(small(), tmp_path / "parts")
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_more_epochs_continue_a_run_with_a_constant_learning_rate(small, tmp_path):
    constant = {"optimizer.schedule": "constant"}
    train_and_evaluate(small(epochs=2, **constant), tmp_path / "parts")
    train_and_evaluate(small(epochs=4, **constant), tmp_path / "parts")
    train_and_evaluate(small(epochs=4, **constant), tmp_path / "whole")
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    with pytest.raises(UserError, match="epochs was 4 and is 3"):
        train_and_evaluate(small(epochs=3, **constant), tmp_path / "parts")


def test_a_run_with_other_settings_is_refused(small, tmp_path):
    train_and_evaluate(small(), tmp_path)
    before = (tmp_path / "metrics.csv").read_bytes()
    for overrides, message in (
        ({"path_prox.strength": 0.5}, "path_prox.strength was .* and is 0.5"),
        ({"seed": 3}, "seed was 0 and is 3"),
        ({"epochs": 9}, "epochs was 3 and is 9"),  # the cosine was planned for 3
        ({"model.mlp.hidden": (8,)}, r"hidden was \[16\] and is \[8\]"),
    ):
        with pytest.raises(UserError, match=message):
            train_and_evaluate(small(**overrides), tmp_path)
    assert (tmp_path / "metrics.csv").read_bytes() == before


def test_a_second_run_in_one_workdir_is_refused(small, tmp_path):
    run = tmp_path / "run"
    with sole_run(run):
        with pytest.raises(UserError, match=f"another run is training in {run}; wait"):
            train_and_evaluate(small(epochs=1), run)
        assert not list(run.iterdir())
    with sole_run(run):
        pass


def test_what_cannot_be_written_leaves_nothing_behind(tmp_path):
    (tmp_path / "report.json").write_text("before")

    def write(path):
        path.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        replace_file(tmp_path / "report.json", write)
    assert [p.name for p in tmp_path.iterdir()] == ["report.json"]
    assert (tmp_path / "report.json").read_text() == "before"


def test_a_run_with_other_data_is_refused(small, write_idx, tmp_path):
    for name, test in (("one", 20), ("other", 21)):
        write_idx(tmp_path / name, test=test)
    config = small("mnist:adamw", epochs=1, data_dir=str(tmp_path / "one"))
    train_and_evaluate(config, tmp_path / "run")
    config.data_dir = str(tmp_path / "other")
    with pytest.raises(UserError, match="data checksum was"):
        train_and_evaluate(config, tmp_path / "run")


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("digits:adamw", {"regularizer": "lasso"}, "regularizer is 'lasso'; there are"),
        ("digits:adamw", {"optimizer.name": "lamb"}, "optimizer.name is 'lamb'"),
        ("digits:adamw", {"optimizer.name": "sgd"}, "'adamw' stands on Adam"),
        ("digits:adamw", {"epochs": 0}, "epochs must be 1 or more"),
        (
            "digits:adamw",
            {"model.mlp.hidden": (4, 0)},
            "hidden must be widths of 1 or more",
        ),
        ("digits:volumize", {"volumize.alpha": 5.0}, "volumize: .*alpha"),
        (
            "digits:path_prox",
            {"path_prox.normalize": "x"},
            "^path_prox: normalize must",
        ),
    ],
    ids=[
        "regularizer",
        "optimizer",
        "adamw-sgd",
        "epochs",
        "hidden",
        "alpha",
        "normalize",
    ],
)
def test_settings_that_cannot_be_used_are_told(
    small, tmp_path, name, overrides, message
):
    with pytest.raises(UserError, match=message):
        train_and_evaluate(small(name, **overrides), tmp_path)


def test_a_diverging_run_is_told(small, tmp_path):
    config = small(**{"optimizer.learning_rate": 1e30})
    where = "in epoch 1, step 2 of 5: the update of hidden0/bias and of 3 more is"
    with pytest.raises(UserError, match=f"sgd diverged {where} not finite"):
        train_and_evaluate(config, tmp_path)


def poisoned(at):
    """Makes update number `at` of one leaf infinite."""

    def update(updates, state, params=None):
        bad = jnp.where(state + 1 == at, jnp.inf, 0)
        bias = updates["out"]["bias"].at[3].add(bad)
        return updates | {"out": updates["out"] | {"bias": bias}}, state + 1

    return optax.GradientTransformation(lambda params: jnp.int32(0), update)


@pytest.mark.parametrize(
    ("at", "where", "left"),
    [(8, "epoch 2, step 3", ["1"]), (15, "epoch 3, step 5", ["1", "2"])],
    ids=["within", "last-step"],
)
def test_the_step_and_leaf_that_broke_are_named(
    at, where, left, small, tmp_path, monkeypatch
):
    """The last good checkpoint stays, whatever the loss of the epoch was."""
    build = train.build_optimizers

    def build_poisoned(*args):
        return [optax.chain(tx, poisoned(at)) for tx in build(*args)]

    monkeypatch.setattr(train, "build_optimizers", build_poisoned)
    with pytest.raises(UserError) as error:
        train_and_evaluate(small(), tmp_path)
    message = f"sgd diverged in {where} of 5: the update of out/bias is not finite;"
    assert str(error.value).startswith(message)
    folder = tmp_path / "checkpoints/plain"
    assert sorted(path.name for path in folder.iterdir()) == left
    bias = final_state(tmp_path, "plain")["params"]["out"]["bias"]
    assert np.isfinite(bias).all()
