"""A run that is killed at random moments, and started again each time."""

import multiprocessing
import random
import signal
import threading
import time

import jax
import pytest
from test_main import FOLDERS
from test_train import SMALL, assert_same_run
from tqdm import tqdm

from volax.examples import _figures
from volax.examples.train import train_and_evaluate

# Processes that are forked from one that has imported all, and computed nothing.
started = multiprocessing.get_context("forkserver")
started.set_forkserver_preload(["jax", "volax.examples.train", "sklearn.datasets"])


def train(config, workdir, settings):
    for name, value in settings.items():
        jax.config.update(name, value)
    _figures.plot_curves = lambda *args: None
    tqdm.set_lock(threading.RLock())  # its own is a resource that a kill leaves behind
    train_and_evaluate(config, workdir)


def checkpoints(workdir):
    """The epochs after which there is a checkpoint, of either run."""
    folders = [workdir / f"checkpoints{folder}" for folder in FOLDERS]
    return {
        (folder.name, path.name)
        for folder in folders
        if folder.exists()
        for path in folder.iterdir()
        if path.name.isdigit()
    }


@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_a_killed_run_ends_like_a_whole_one(kills, load_config, tmp_path, monkeypatch):
    """Bit for bit, wherever in training, in a checkpoint or in starting it stopped."""
    monkeypatch.setattr(_figures, "plot_curves", lambda *args: None)
    config = load_config("digits:path_prox", **SMALL, epochs=8 * kills)
    rng, workdir = random.Random(kills), tmp_path / "killed"
    names = "jax_disable_most_optimizations", "jax_num_cpu_devices"
    same = {name: jax.config.values[name] for name in names}
    for k in range(kills):
        process = started.Process(target=train, args=(config, workdir, same))
        before, began = checkpoints(workdir), time.monotonic()
        process.start()
        # Some are killed before they have gone on at all.
        until = began + (rng.uniform(0, 1) if k % 4 == 1 else 200)
        while time.monotonic() < until and checkpoints(workdir) <= before:
            assert process.is_alive()
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.3))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        partial = [p.name for p in workdir.glob("checkpoints/*/*tmp*")]
        taken = time.monotonic() - began
        print(k, sorted(checkpoints(workdir)), partial, f"{taken:.1f} s")
    assert not (workdir / "report.json").exists()
    for folder in (workdir, tmp_path / "whole"):
        train_and_evaluate(config, folder)
    assert_same_run(tmp_path / "whole", workdir)
