import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import zipfile

import pytest
from conftest import CONFIGS
from test_train import SMALL

from volax.examples import main
from volax.examples.train import train_and_evaluate

CONFIG = f"{CONFIGS}/digits.py:path_prox"
ROOT = CONFIGS.parent
FOLDERS = ("/plain", "/regularized")


@pytest.fixture
def start(tmp_path, quick_compilation):
    """Starts the command, far from the repository, with `path` in front of Python's."""

    def start(*arguments, path=ROOT, blocks=None, **more):
        environment = {k: v for k, v in os.environ.items() if k != "VOLAX_DATA_DIR"}
        environment["PYTHONPATH"] = os.pathsep.join([str(path), str(ROOT)])
        # The shell sets the limit: a fork of this process, where JAX runs, may hang.
        limited = ["sh", "-c", f'ulimit -f {blocks}; exec "$@"', "sh"] if blocks else []
        return subprocess.Popen(
            [*limited, sys.executable, "-m", "volax.examples.main", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
            env=environment | quick_compilation | more,
        )

    return start


@pytest.fixture
def command(start):
    """Runs the command to its end."""

    def run(*arguments, **more):
        process = start(*arguments, **more)
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
        ("--config.epochs.x=1", "the config has no 'epochs.x'"),
        ("--workdri=x", "Unknown command line flag 'workdri'. Did you mean: workdir"),
        ("--config=nowhere.py", "nowhere.py"),
        ("extra", "'extra' is no flag; settings are given as --config.NAME=VALUE"),
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
    config = f"{CONFIGS}/mnist.py:adamw"
    code, _, err = command(f"--config={config}", "--workdir=run", "--config.data_dir=.")
    assert code == 1
    assert err.startswith("error: . has neither train-labels-idx1-ubyte.gz nor")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"x = (", r"is no config: SyntaxError: '\(' was never closed"),
        (b"import nowhere", "is no config: ModuleNotFoundError: No module"),
        (b"raise SystemExit('bye')", "is no config: SystemExit: bye"),
        (b"\x89PNG\r\n\x00", "is no config: SyntaxError"),
        (b"get_config = dict", r"has no get_config\(\) that returns a ConfigDict"),
        (b"", r"has no get_config\(\) that returns a ConfigDict"),
    ],
    ids=["syntax", "import", "exit", "binary", "dict", "empty"],
)
def test_a_config_that_is_none_is_told(content, message, tmp_path, capsys):
    path = tmp_path / "mine.py"
    path.write_bytes(content)
    with pytest.raises(SystemExit) as exit:
        main._with_config_file(["volax-train", f"--config={path}"])
    err = capsys.readouterr().err
    assert exit.value.code == 2
    assert re.search(message, err)
    assert err.startswith(f"error: {path} ")
    assert err.count("\n") == 1


@pytest.mark.parametrize("name", ["nowhere", "nowhere.py", "./digits"])
def test_a_config_that_is_missing_is_told(name, capsys):
    with pytest.raises(SystemExit):
        main._with_config_file(["volax-train", "--config", name])
    err = capsys.readouterr().err
    assert err.startswith("error: there is no config ")
    assert ("default, digits, " in err) == (name == "nowhere")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("content", "argument", "message"),
    [
        (None, "lasso", "there is no regularizer 'lasso'; there are adamw, volumize"),
        ("def get_config(): pass", "adamw", "is no config: TypeError: get_config()"),
    ],
    ids=["unknown", "none-taken"],
)
def test_an_argument_that_a_config_does_not_take_is_told(
    content, argument, message, tmp_path, capsys
):
    path = CONFIGS / "digits.py"
    if content is not None:
        path = tmp_path / "mine.py"
        path.write_text(content)
    with pytest.raises(SystemExit):
        main._with_config_file(["volax-train", f"--config={path}:{argument}"])
    err = capsys.readouterr().err
    assert err.startswith(f"error: {path}")
    assert message in err
    assert err.count("\n") == 1


def test_a_config_is_found_by_name_and_by_path(monkeypatch):
    argv = ["volax-train", "--config=digits:adamw", "--workdir=x"]
    (_, found, rest) = main._with_config_file(argv)
    assert found.endswith("/configs/digits.py:adamw")
    assert rest == "--workdir=x"
    monkeypatch.chdir(ROOT)
    argv = ["volax-train", "--config", "configs/digits.py:adamw"]
    assert main._with_config_file(argv) == argv


def test_a_wheel_finds_its_configs_by_name(command, tmp_path):
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "installed")
    names = {p.name for p in (tmp_path / "installed/volax/examples/configs").iterdir()}
    assert names == {p.name for p in CONFIGS.glob("*.py")}
    # The answer of the config: it was found, and nothing is trained.
    arguments = ("--config=mnist:adamw", "--workdir=run", "--config.epoch=1")
    code, _, err = command(*arguments, path=tmp_path / "installed")
    assert code == 2
    assert err == "error: the config has no 'epoch'; did you mean 'epochs'?\n"


@pytest.mark.parametrize(
    ("name", "line", "code", "message"),
    [
        (
            "ml_collections",
            "raise ModuleNotFoundError('No module', name='ml_collections')",
            1,
            "error: ml_collections is not installed; pip install 'volax-optax[exampl",
        ),
        (
            "sklearn",
            "raise ModuleNotFoundError('No module', name='sklearn')",
            1,
            "error: sklearn is not installed; pip install 'volax-optax[examples]' ",
        ),
        (
            "flax",
            "import os\ntry: os.kill(os.getpid(), 2)\nexcept: raise ImportError",
            130,
            "\nStopped before the training began.\n",
        ),
    ],
    ids=["missing", "missing-later", "ctrl-c"],
)
def test_imports_that_fail_are_told(command, tmp_path, name, line, code, message):
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / f"{name}.py").write_text(line)
    arguments = (f"--config={CONFIG}", "--workdir=run")
    found, out, err = command(*arguments, path=tmp_path / "first")
    assert found == code
    assert err.startswith(message)
    assert err.count("\n") == message.count("\n") or err.count("\n") == 1
    assert not out
    assert not (tmp_path / "run").exists()


def test_a_full_disk_is_one_sentence(command, tmp_path):
    """No file of more than 20,000 bytes can be written; a checkpoint has 80,000."""
    code, _, err = command(
        f"--config={CONFIG}",
        "--workdir=run",
        "--config.epochs=1",
        "--config.per_class=4",
        JAX_ENABLE_COMPILATION_CACHE="false",  # it would be too large as well
        blocks=39,  # of 512 bytes
    )
    assert code == 1
    assert re.match(r"error: run/checkpoints/plain/1 cannot be written \(.*\)\n$", err)
    files = {str(p.relative_to(tmp_path / "run")) for p in tmp_path.glob("run/**/*")}
    folders = {f"checkpoints{s}" for s in ("", *FOLDERS)}
    assert files <= {"config.json", "metrics.csv", *folders}


def test_a_folder_that_cannot_be_written_is_one_sentence(command, tmp_path):
    (tmp_path / "file").touch()
    code, _, err = command(f"--config={CONFIG}", "--workdir=file/run")
    assert code == 1
    assert err.startswith("error: file/run: ")
    assert err.count("\n") == 1


def wait_for_rows(workdir, count, process):
    path = workdir / "metrics.csv"
    limit = time.monotonic() + 100
    while not path.exists() or path.read_text().count("\n") <= count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < limit
        time.sleep(0.005)


def test_ctrl_c_loses_nothing(start, tmp_path):
    """What was being written is on the disk; test_killed.py goes on from there."""
    settings = {**SMALL, "epochs": 40}
    workdir = tmp_path / "run"
    overrides = [f"--config.{key}={value}" for key, value in settings.items()]
    process = start(f"--config={CONFIG}", f"--workdir={workdir}", *overrides)
    wait_for_rows(workdir, 3, process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err == "\nStopped; the same command resumes from the last checkpoint.\n"
    assert not (workdir / "report.json").exists()
    epochs = (workdir / "metrics.csv").read_text().count("\n") - 1
    left = [path.name for path in (workdir / "checkpoints/plain").iterdir()]
    assert all(name.isdigit() for name in left)
    assert max(map(int, left)) >= epochs


def test_two_processes_train_like_one(start, load_config, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = "127.0.0.1:" + str(free.getsockname()[1])
    settings = {**SMALL, "epochs": 2}
    given = {**settings, "mesh": (2, 1), "layout": "sharded"}
    overrides = [f"--config.{key}={value}" for key, value in given.items()]
    arguments = [f"--config={CONFIG}", "--workdir=two", *overrides, "--distributed"]
    arguments += [f"--coordinator={address}", "--processes=2"]
    processes = [start(*arguments, f"--process={k}") for k in range(2)]
    alone = train_and_evaluate(
        load_config("digits:path_prox", **settings), tmp_path / "one"
    )
    try:
        for k, process in enumerate(processes):
            out, err = process.communicate(timeout=300)
            assert process.returncode == 0, err
            assert ("test accuracy" in out) == (k == 0)
    finally:
        for process in processes:
            process.kill()
    two = json.loads((tmp_path / "two/report.json").read_text())["models"]
    assert two.keys() == alone["models"].keys()
    for name, row in alone["models"].items():
        for key, value in row.items():
            assert two[name][key] == pytest.approx(value, rel=1e-4), (name, key)
