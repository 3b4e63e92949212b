"""The benchmarks run at a small size and give finite figures; no time is judged."""

import json
import math
import sys

import jax
import numpy as np
import pytest

from benchmarks import __main__ as command
from benchmarks import (
    frontier,
    inference,
    mnist,
    optimizers,
    packed,
    peers,
    subnormal,
    targets,
    transformer,
    trees,
    update,
)
from benchmarks.sections import SECTIONS
from tests.cases import train

TINY = transformer.Size(1, 8, 2, 4, 8, 8, 4)
SMALL = {
    "bare": lambda: update.bare(1, "volum", size=8 * 12**2),
    "step": lambda: update.step(1, "p=0.8", width=16),
    "vgg": lambda: update.vgg(1, "balance", scale=32),
    "many": lambda: update.many(1, "p=1", count=3),
    "memory": lambda: update.memory(1, "path_prox", width=16),
    "sweep": lambda: update.sweep(1, "volumize", sizes=(100, 1000)),
    "subnormal": lambda: subnormal.subnormal(1, "p=0.5", side=100, steps=200),
    "transformer": lambda: transformer.transformer(1, "0.04", TINY, steps=2),
    "packed": lambda: packed.packed(1, "", shapes=((2, 16),)),
    "compact": lambda: inference.inference(1, "dense, 50%", size=32),
    "torch": lambda: peers.compare(1, "", size=8 * 12**2),
    "mnist": lambda: mnist.mnist(1, "", hidden=8, data=mnist.noise(300)),
}


@pytest.mark.parametrize("section", SMALL)
def test_a_section_gives_finite_figures(section):
    if SECTIONS[section].needs_torch:
        pytest.importorskip("torch")
    lines = list(SMALL[section]())
    assert len({line.row for line in lines}) == len(lines) > 0
    assert all(math.isfinite(v) for line in lines for v in line.figures.values())


def test_the_pairs_of_the_trees_fit_them():
    for tree in (trees.bare(800), trees.dense(16), trees.vgg(32)):
        params, pairs = tree
        assert all(pair.fit(params).size > 1 for pair in pairs)


@pytest.mark.parametrize("name", peers.ROWS)
def test_pytorch_computes_the_same(name):
    torch = pytest.importorskip("torch")
    params, pairs = trees.bare(8 * 12**2)
    grads = trees.gradients(params)
    peer = peers.ROWS[name]
    tensors = [peers.torch_tensors(torch, tree.values()) for tree in (params, grads)]
    run, tx = peer.torch(torch, *tensors), peer.volax(pairs)
    for _ in range(3):
        run()
    params, _ = train(tx, params, [grads] * 3)
    for own, other in zip(params.values(), tensors[0]):
        np.testing.assert_allclose(own, other.detach().numpy(), rtol=2e-4, atol=1e-6)


def test_the_command_lists_its_rows(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--list", "--only", "p=0.8"])
    command.main()
    printed = capsys.readouterr().out
    assert "many: " in printed
    assert "    lp_decay p=0.8\n" in printed
    assert "packed: " not in printed


def test_the_command_writes_its_figures(monkeypatch, capsys, tmp_path):
    path = tmp_path / "figures.json"
    given = ["--sections", "packed", "--only", "1 bit, 1 x 1024 ", "--rounds", "1"]
    monkeypatch.setattr(sys, "argv", ["benchmarks", *given, "--json", str(path)])
    command.main()
    written = json.loads(path.read_text())
    assert written["machine"]["versions"]["jax"] == jax.__version__
    (row,) = written["rows"]
    assert row["row"] in capsys.readouterr().out.replace("packed   ", "packed ")


def test_a_study_trains_what_is_missing_and_prints_a_table(
    tmp_path, monkeypatch, capsys
):
    net = frontier.NETS["digits-256"]._replace(widths=(16,), targets=((8,),), epochs=4)
    monkeypatch.setitem(frontier.NETS, "tiny", net)
    results = tmp_path / "results.jsonl"
    given = ["--nets=tiny", "--results", str(results)]
    frontier.main([*given, f"--methods={','.join(frontier.METHODS)}", "--seeds=1"])
    frontier.main([*given, "--methods=plain,small", "--seeds=2"])
    rows = [json.loads(line) for line in results.read_text().splitlines()]
    assert [(row["method"], row["seed"]) for row in rows] == [
        *((method, 0) for method in frontier.METHODS),
        ("plain", 1),
        ("small", 1),
    ]
    assert all(0 < row["accuracy"] < 1 for row in rows)
    cut = {row["method"]: row["units"] for row in rows}
    assert cut["plain"] == [16]
    assert cut["small"] == cut["magnitude"] == cut["keep_units"] == [8]
    printed = capsys.readouterr().out.splitlines()
    assert len([line for line in printed if line.startswith("| tiny")]) == len(cut) + 2


def test_a_study_takes_the_rate_that_was_best_on_held_out_images(
    tmp_path, monkeypatch, capsys
):
    net = frontier.NETS["digits-256"]._replace(targets=((4,),), epochs=2)
    monkeypatch.setitem(frontier.NETS, "tiny", net)
    given = ["--nets=tiny", "--rates=1e-9,1e-2", "--results", str(tmp_path / "rows")]
    frontier.main([*given, "--seeds=1"])
    rows = [json.loads(x) for x in (tmp_path / "rows").read_text().splitlines()]
    share = 1 / 6
    assert [(row["rate"], row["validation"]) for row in rows] == [
        (1e-9, share),
        (1e-2, share),
        (1e-2, 0),
    ]
    assert "| 0.01 | 4 |" in capsys.readouterr().out


def test_a_study_of_letters(tmp_path, monkeypatch, capsys):
    net = frontier.NETS["letters"]._replace(widths=(8, 4), targets=((4, 2),), epochs=3)
    monkeypatch.setitem(frontier.NETS, "tiny", net)
    monkeypatch.setattr(transformer, "Size", TINY._replace)
    monkeypatch.delenv("VOLAX_DATA_DIR", raising=False)
    given = ["--nets=tiny", "--seeds=1", "--results", str(tmp_path / "rows")]
    frontier.main([*given, "--methods=magnitude,keep_units"])
    rows = [json.loads(x) for x in (tmp_path / "rows").read_text().splitlines()]
    heads, units, channels = 2, 4, 2
    printed = capsys.readouterr().out
    for row in rows:
        assert row["units"] == [heads, units, heads * channels]
        assert 0 < row["loss"] < 5
        assert f"{row['loss']:.3f}" in printed


def test_a_search_of_strengths_comes_near_to_the_shares():
    found = optimizers.search(lambda s: (0.5, [1], 1 / (1 + s)), 0.1, 8)
    left = [run["left"] for run in found]
    assert len(found) == 8
    for share in optimizers.SHARES:
        assert min(abs(np.log(x / share)) for x in left) < 0.4
    line = [{"left": x, "accuracy": np.log(x)} for x in (1.0, 0.1)]
    assert optimizers.at_share(line, 0.25) == pytest.approx(np.log(0.25))
    assert np.isnan(optimizers.at_share(line, 0.05))


def test_a_study_of_optimizers_trains_what_is_missing(tmp_path, monkeypatch, capsys):
    net = optimizers.NETS["digits-128x3"]._replace(widths=(4, 3), epochs=1)
    monkeypatch.setitem(optimizers.NETS, "tiny", net)
    monkeypatch.setattr(optimizers, "_SMALL", ())
    results = tmp_path / "results.jsonl"
    command = ["--nets=tiny", "--optimizers=adam", "--frozen=yes", "--search=1"]
    for rules in ("p=1/2", "p=1/2,metric p=1/2"):
        optimizers.main([*command, "--rules", rules, "--results", str(results)])
    rows = [json.loads(line) for line in results.read_text().splitlines()]
    assert [row["rule"] for row in rows] == ["trained small", "p=1/2", "metric p=1/2"]
    assert rows[0]["units"] == [4, 3]
    assert rows[0]["left"] == 1
    assert all(0 < row["left"] <= 1 and 0 < row["accuracy"] < 1 for row in rows)
    assert capsys.readouterr().out.count("| adam | metric p=1/2 | yes |") == 1


def test_a_study_of_targets_prints_shares_beside_fixed_strengths(monkeypatch, capsys):
    small = targets.SETTINGS["digits"]._replace(units=6, epochs=1)
    monkeypatch.setitem(targets.SETTINGS, "digits", small)
    monkeypatch.setattr(targets, "STRENGTHS", np.array([0.0, 10.0]))
    rules = "path_prox,lp_decay"
    given = [
        "--rules",
        rules,
        "--optimizers",
        "sgd",
        "--targets",
        "0.3",
        "--seeds",
        "1",
    ]
    targets.main(given)
    head, _, *rows = capsys.readouterr().out.splitlines()[-4:]
    assert head.startswith("| rule | optimizer | target | share")
    assert [row.split(" | ")[0] for row in rows] == ["| path_prox", "| lp_decay"]
    # Of the two strengths the one removes nothing and the other everything.
    assert all(row.endswith("(10: 100.0) |") for row in rows)
