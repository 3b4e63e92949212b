import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import CONFIGS
from test_train import SMALL, assert_same_run

from volax.examples.train import train_and_evaluate

CONFIG = CONFIGS / "digits_path_prox.py"


@pytest.fixture
def start(tmp_path, quick_compilation):
    """Starts the command, far from the repository."""

    def start(*arguments):
        environment = {k: v for k, v in os.environ.items() if k != "VOLAX_DATA_DIR"}
        return subprocess.Popen(
            [sys.executable, "-m", "volax.examples.main", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
            env=environment | quick_compilation,
        )

    return start


@pytest.fixture
def command(start):
    """Runs the command to its end."""

    def run(*arguments):
        process = start(*arguments)
        out, err = process.communicate(timeout=120)
        return process.returncode, out, err

    return run


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        (
            "--config.path_prox.strenght=1",
            "no 'path_prox.strenght'; did you mean 'path_prox.strength'?",
        ),
        ("--config.epoch=1", "the config has no 'epoch'; did you mean 'epochs'?"),
        ("--config.epochs=many", "flag --config.epochs=many: invalid literal"),
        ("--config.hidden.x=1", "the config has no 'hidden.x'"),
        ("--workdri=x", "Unknown command line flag 'workdri'. Did you mean: workdir"),
        ("--config=nowhere.py", "nowhere.py"),
        ("extra", "what is 'extra'?"),
    ],
    ids=["nested", "top", "type", "too-deep", "flag", "file", "positional"],
)
def test_a_mistake_on_the_command_line_is_one_sentence(command, argument, message):
    code, out, err = command(f"--config={CONFIG}", "--workdir=run", argument)
    assert code in (1, 2)
    assert message in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert not out


def test_missing_data_is_one_sentence(command, tmp_path):
    (tmp_path / "train-images-idx3-ubyte").write_bytes(b"?")
    config = CONFIGS / "mnist_adamw.py"
    code, _, err = command(f"--config={config}", "--workdir=run", "--config.data_dir=.")
    assert code == 1
    assert err.startswith("error: . has neither train-labels-idx1-ubyte.gz nor")
    assert err.count("\n") == 1


def wait_for_rows(workdir, count, process):
    path = workdir / "metrics.csv"
    limit = time.monotonic() + 100
    while not path.exists() or path.read_text().count("\n") <= count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < limit
        time.sleep(0.005)


def test_ctrl_c_and_kill_lose_nothing(start, load_config, tmp_path):
    settings = {**SMALL, "epochs": 40}
    workdir = tmp_path / "run"
    overrides = [f"--config.{key}={value}" for key, value in settings.items()]
    arguments = [f"--config={CONFIG}", f"--workdir={workdir}", *overrides]

    process = start(*arguments)
    wait_for_rows(workdir, 3, process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err == "\nStopped; the same command resumes from the last checkpoint.\n"

    process = start(*arguments)
    wait_for_rows(workdir, 43, process)
    process.kill()
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert not (workdir / "report.json").exists()

    config = load_config("digits_path_prox", **settings)
    train_and_evaluate(config, workdir)
    train_and_evaluate(config, tmp_path / "whole")
    assert_same_run(tmp_path / "whole", workdir)
