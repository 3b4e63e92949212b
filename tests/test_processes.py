"""Two processes on this machine, whose arrays neither has all of."""

import pathlib
import socket
import subprocess
import sys


def test_models_and_checkpoints_of_two_processes_are_whole(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-m", "tests.processes"]
    both = [
        subprocess.Popen(
            [*command, number, port, str(tmp_path)],
            cwd=pathlib.Path(__file__).parents[1],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number in "01"
    ]
    try:
        said = [process.communicate(timeout=200)[0] for process in both]
    finally:
        for process in both:
            process.kill()  # one that waits for the other, which has failed
    assert [process.returncode for process in both] == [0, 0], "\n".join(said)
    assert all(text.endswith("done\n") for text in said)
