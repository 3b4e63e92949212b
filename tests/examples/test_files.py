"""What a run leaves on the disk, whatever happens to it."""

import random
import shutil
import threading
import time
import warnings

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import P
from jax.sharding import AxisType, NamedSharding

from volax.examples._errors import UserError
from volax.examples._files import Checkpoints

ROWS = [{"epoch": k + 1, "loss": 0.1 * k, "alive": k} for k in range(3)]


def state(seed=0):
    """Arrays of which one is too large to stand in the index of the others."""
    keys = jax.random.split(jax.random.key(seed), 2)
    params = {"w": jax.random.normal(keys[0], (16, 64)), "b": jnp.arange(8.0)}
    half = jax.random.normal(keys[1], (8, 3), jnp.bfloat16)
    return params, {"mu": half, "count": jnp.int32(3), "on": jnp.array([True, False])}


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A folder with two checkpoints, after two epochs and after three."""
    folder = tmp_path_factory.mktemp("two")
    with Checkpoints(folder, seed=7) as checkpoints:
        for epochs in (1, 2, 3):
            checkpoints.save(state(epochs), ROWS[:epochs])
    assert sorted(p.name for p in folder.iterdir()) == ["2", "3"]
    return folder


def restored(folder, seed=7):
    with Checkpoints(folder, seed) as checkpoints:
        return checkpoints.restore(state())


def is_stored(found, epochs):
    chex.assert_trees_all_equal(found, (state(epochs), ROWS[:epochs]))
    chex.assert_trees_all_equal_dtypes(found[0], state())


def truncated(file, rng):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def missing(file, rng):
    file.unlink()


def garbage(file, rng):
    file.write_bytes(rng.randbytes(file.stat().st_size))


def flipped(file, rng):
    content = bytearray(file.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    file.write_bytes(content)


@pytest.mark.parametrize("damage", [truncated, missing, garbage, flipped])
def test_of_a_damaged_file_nothing_is_read(damage, two, tmp_path):
    """Each file: it was not needed, or the checkpoint before serves with a warning."""
    rng, before = random.Random(0), 0
    files = [p.relative_to(two) for p in sorted((two / "3").rglob("*")) if p.is_file()]
    for k, file in enumerate(files):
        folder = tmp_path / str(k)
        shutil.copytree(two, folder)
        damage(folder / file, rng)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = restored(folder)
        is_stored(found, 2 if caught else 3)
        for warning in caught:
            assert str(warning.message).startswith(f"{folder / '3'} is damaged (")
            assert str(warning.message).endswith(f"goes on from {folder / '2'}")
            assert "\n" not in str(warning.message)
        before += len(caught)
    assert before >= 3  # the index, the arrays, the rows


def test_a_damaged_checkpoint_is_replaced_by_the_next(two, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(two, folder)
    shutil.rmtree(folder / "3/state")
    with Checkpoints(folder, seed=7) as checkpoints:
        with pytest.warns(UserWarning, match="/3 is damaged"):
            is_stored(checkpoints.restore(state()), 2)
        assert (folder / "3").exists()
        checkpoints.save(state(3), ROWS)
    is_stored(restored(folder), 3)
    assert sorted(p.name for p in folder.iterdir()) == ["2", "3"]


def test_without_a_whole_checkpoint_nothing_is_guessed(two, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(two, folder)
    for step in "23":
        (folder / step / "about/metadata").write_text("{")
    with pytest.raises(UserError, match=f"no checkpoint in {folder} can be read") as e:
        restored(folder)
    assert "\n" not in str(e.value)
    assert sorted(p.name for p in folder.iterdir()) == ["2", "3"]
    assert restored(tmp_path / "new")[1] == []


def test_a_checkpoint_of_another_seed_is_not_taken(two):
    with pytest.raises(UserError, match="it is of seed 7 after 3 epochs"):
        restored(two, seed=8)


def test_arrays_may_be_donated_while_they_are_written(tmp_path):
    advance = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
    many = {str(k): jnp.full((256, 256), k, jnp.float32) for k in range(8)}
    with Checkpoints(tmp_path, seed=0) as checkpoints:
        for epoch in (1, 2):
            checkpoints.save(many, ROWS[:epoch])
            for _ in range(5):
                many = advance(many)
        found, _ = checkpoints.restore(many)
    for k in range(8):
        np.testing.assert_array_equal(found[str(k)], np.full((256, 256), k + 5.0))


def test_what_a_failed_save_still_writes_is_removed(two, tmp_path, monkeypatch):
    """The library's threads make folders after it has raised the first error."""
    folder = tmp_path / "run"
    shutil.copytree(two, folder)
    checkpoints = Checkpoints(folder, seed=7)

    def straggle():
        time.sleep(0.1)
        late = folder / "4.orbax-checkpoint-tmp/state.orbax-checkpoint-tmp"
        late.mkdir(parents=True)
        (late / "d").write_bytes(b"late")

    def save(step, args):
        threading.Thread(target=straggle).start()
        raise OSError("Failed writing: No space left on device [os_error_code='28']")

    monkeypatch.setattr(checkpoints._manager, "save", save)
    with checkpoints, pytest.raises(UserError) as error:
        checkpoints.save(state(4), [*ROWS, ROWS[0]])
    message = f"{folder / '4'} cannot be written (No space left on device)"
    assert str(error.value) == message
    time.sleep(0.2)
    assert sorted(p.name for p in folder.iterdir()) == ["2", "3"]
    is_stored(restored(folder), 3)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_a_run_goes_on_on_another_mesh(kind, tmp_path):
    def on(shape, spec):
        mesh = jax.make_mesh(shape, ("a", "b"), axis_types=(kind,) * 2)
        specs = {"w": spec, "count": P()}
        arrays = {"w": state()[0]["w"], "count": jnp.int32(5)}
        return {
            k: jax.device_put(x, NamedSharding(mesh, specs[k]))
            for k, x in arrays.items()
        }

    first = on((4, 2), P("a", "b"))
    with Checkpoints(tmp_path, seed=0) as checkpoints:
        checkpoints.save(first, ROWS)
    alone = {"w": state()[0]["w"], "count": jnp.int32(0)}
    for other in (on((2, 4), P(("b", "a"))), on((1, 1), P()), alone):
        with Checkpoints(tmp_path, seed=0) as checkpoints:
            found, rows = checkpoints.restore(other)
        chex.assert_trees_all_equal(jax.device_get(found), jax.device_get(first))
        assert rows == ROWS
        for new, like in zip(jax.tree.leaves(found), jax.tree.leaves(other)):
            assert new.sharding.is_equivalent_to(like.sharding, new.ndim)
