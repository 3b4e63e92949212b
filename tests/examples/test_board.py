"""What TensorBoard reads is what stands in metrics.csv."""

import struct
import sys

import pytest
from tensorboardX.proto import event_pb2

from volax.examples._board import Board
from volax.examples._errors import UserError


def scalars(folder):
    """(step, tag, value) of every event in the files of a folder, in their order."""
    found = []
    for path in sorted(folder.iterdir()):
        content, at = path.read_bytes(), 0
        while at < len(content):  # length, its sum, the event, its sum
            (size,) = struct.unpack_from("<Q", content, at)
            event = vars(event_pb2)["Event"].FromString(
                content[at + 12 : at + 12 + size]
            )
            at += size + 16
            for value in event.summary.value:
                found.append((event.step, value.tag, value.simple_value))
    return found


def test_every_row_is_there_once_also_after_a_resumption(tmp_path):
    rows = [{"epoch": n, "loss": 1 / n, "alive": 10 - n} for n in (1, 2, 3)]
    for seen in (2, 3):  # the second process has read two rows of the first
        board = Board(tmp_path / "board")
        for end in range(seen + 1):
            board.write({"adam": rows[:end]})
        board.close()
    expected = [(n, k, rows[n - 1][k]) for n in (1, 2, 3) for k in ("loss", "alive")]
    found = scalars(tmp_path / "board/adam")
    assert [x[:2] for x in found] == [x[:2] for x in expected]
    assert [x[2] for x in found] == pytest.approx([x[2] for x in expected])


def test_without_the_library_one_sentence_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(UserError, match=r"pip install 'volax-optax\[tensorboard\]'"):
        Board(tmp_path)
