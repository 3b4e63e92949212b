import gzip
import lzma
import os
from typing import Any
from urllib.error import URLError

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import datasets

from volax.examples._errors import UserError
from volax.examples.data import augment, load, load_dataset
from volax.examples.data.idx import read_idx

IMAGES = "train-images-idx3-ubyte.gz"
LABELS = "train-labels-idx1-ubyte.gz"


def test_digits_come_without_files_and_never_change():
    data, again = load_dataset("digits"), load_dataset("digits", seed=7)
    assert data.train_inputs.shape == (1438, 64)
    assert data.test_inputs.shape == (359, 64)
    assert data.train_inputs.dtype == np.float32
    assert data.train_labels.dtype == np.int32
    assert (data.train_inputs.min(), data.train_inputs.max()) == (0, 1)
    for one, other in zip(data, again):
        np.testing.assert_array_equal(one, other)


def test_digits_split_every_class_and_lose_no_image():
    data = load_dataset("digits")
    images, labels = datasets.load_digits(return_X_y=True)
    shares = np.bincount(data.test_labels) / np.bincount(labels)
    np.testing.assert_allclose(shares, 0.2, atol=0.003)
    both = np.concatenate([data.train_inputs, data.test_inputs]) * 16
    order, expected = np.lexsort(both.T), np.lexsort(images.T)
    np.testing.assert_array_equal(both[order], images[expected])


@pytest.mark.parametrize("compress", [True, False], ids=["gz", "plain"])
@pytest.mark.parametrize("folder", ["", "fashion-mnist"], ids=["direct", "subfolder"])
def test_idx_files_are_read(tmp_path, write_idx, folder, compress):
    written = write_idx(tmp_path / folder, compress=compress)
    data = load_dataset("fashion_mnist", str(tmp_path))
    images, labels = written["train"]
    expected = images.reshape(40, 784) / np.float32(255)
    np.testing.assert_array_equal(data.train_inputs, expected)
    np.testing.assert_array_equal(data.train_labels, labels)
    np.testing.assert_array_equal(data.test_labels, written["test"][1])


def test_a_missing_file_is_named(tmp_path, write_idx):
    write_idx(tmp_path)
    (tmp_path / LABELS).unlink()
    with pytest.raises(UserError, match=f"has neither {LABELS} nor"):
        load_dataset("mnist", str(tmp_path))


def _cut(content):
    return content[: len(content) // 2]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_cut, "damaged or cannot be read"),
        (lambda content: b"not gzip at all", "damaged or cannot be read"),
        (lambda content: content[:30] + b"\0\1" + content[32:], "damaged"),
        (lambda content: b"", "is not an IDX file"),
        (lambda content: gzip.compress(b"<html>404</html>"), "is not an IDX file"),
        (lambda content: gzip.compress(b"\0\0\x08\x03"), "is not an IDX file"),
    ],
    ids=["truncated", "garbage", "flipped", "empty", "foreign", "header-only"],
)
def test_a_damaged_compressed_file_is_named(tmp_path, write_idx, damage, message):
    write_idx(tmp_path)
    path = tmp_path / IMAGES
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=message) as error:
        load_dataset("mnist", str(tmp_path))
    assert str(path) in str(error.value)


@pytest.mark.parametrize("extra", [-1, 1], ids=["short", "long"])
def test_a_wrong_length_is_an_error(tmp_path, idx_bytes, extra):
    content = idx_bytes(np.zeros((3, 28, 28)))
    path = tmp_path / "images"
    path.write_bytes(content[:-1] if extra < 0 else content + b"\0")
    with pytest.raises(UserError, match=r"promises 2,352 bytes .* 2,35[13] are there"):
        read_idx(path, 3)


@pytest.mark.parametrize(
    "magic",
    [b"\0\0\x08\x01", b"\0\0\x0d\x03", b"\x89PNG"],
    ids=["rank", "float", "png"],
)
def test_a_wrong_magic_number_is_an_error(tmp_path, idx_bytes, magic):
    path = tmp_path / "images"
    path.write_bytes(idx_bytes(np.zeros((3, 28, 28)), magic=magic))
    with pytest.raises(UserError, match=f"begins with '{magic.hex()}'"):
        read_idx(path, 3)


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        (LABELS, np.zeros(39), "40 images and .* 39 labels"),
        (LABELS, np.full(40, 10), "has label 10, expected 0 to 9"),
        (IMAGES, np.zeros((40, 32, 32)), r"images of \(32, 32\), not \(28, 28\)"),
    ],
    ids=["counts", "label", "size"],
)
def test_files_that_do_not_fit_are_an_error(
    tmp_path, write_idx, idx_bytes, name, array, message
):
    write_idx(tmp_path)
    (tmp_path / name).write_bytes(gzip.compress(idx_bytes(array)))
    with pytest.raises(UserError, match=message):
        load_dataset("mnist", str(tmp_path))


@pytest.mark.parametrize(
    ("name", "files", "failure"),
    [
        ("mnist", "four IDX files", URLError("no route")),
        ("mnist", "four IDX files", ValueError("md5 checksum")),
        ("cifar10", "binary batches", URLError("no route")),
    ],
    ids=["route", "checksum", "cifar10"],
)
def test_without_files_and_connection_one_sentence_says_so(
    tmp_path, monkeypatch, name, files, failure
):
    def fetch(*args, **kwargs):
        raise failure

    monkeypatch.setattr(datasets, "fetch_openml", fetch)
    with pytest.raises(UserError, match="cannot be used") as error:
        load_dataset(name, str(tmp_path))
    assert f"no {files} in" in str(error.value)
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


def test_openml_is_split_as_published(monkeypatch):
    asked = []

    def fetch(name, **kwargs):
        asked.append(name)
        labels = np.arange(70_000) % 10
        return np.full((70_000, 784), 255), labels.astype(str).astype(object)

    monkeypatch.setattr(datasets, "fetch_openml", fetch)
    data = load_dataset("fashion_mnist")
    assert asked == ["Fashion-MNIST"]
    assert data.train_inputs.shape == (60_000, 784)
    assert data.test_inputs.shape == (10_000, 784)
    assert data.train_inputs.max() == 1
    np.testing.assert_array_equal(data.test_labels, np.arange(10_000) % 10)


def test_openml_sends_colours_as_planes(monkeypatch):
    planes = np.repeat(np.array([10, 20, 30], np.uint8), 1024)

    def fetch(name, **kwargs):
        labels = np.arange(60_000) % 10
        return np.broadcast_to(planes, (60_000, 3072)), labels.astype(str)

    monkeypatch.setattr(datasets, "fetch_openml", fetch)
    loaded = load("cifar10")
    assert loaded.note == ""
    assert loaded.dataset.train_inputs.shape == (50_000, 32, 32, 3)
    assert loaded.dataset.test_inputs.shape == (10_000, 32, 32, 3)
    np.testing.assert_array_equal(loaded.dataset.test_inputs[0, 3, 4], [10, 20, 30])


def test_per_class_keeps_so_many_of_each():
    data = load_dataset("digits", per_class=7)
    np.testing.assert_array_equal(np.bincount(data.train_labels), np.full(10, 7))
    other = load_dataset("digits", per_class=7, seed=1)
    assert not np.array_equal(data.train_inputs, other.train_inputs)
    assert len(data.test_labels) == 359
    with pytest.raises(UserError, match="per_class is 1000, but class 8 has only 139"):
        load_dataset("digits", per_class=1000)


def test_label_noise_makes_exactly_this_share_wrong():
    clean = load_dataset("digits")
    noisy = load_dataset("digits", label_noise=0.3, seed=3)
    wrong = clean.train_labels != noisy.train_labels
    assert wrong.sum() == round(0.3 * len(wrong))
    assert set(noisy.train_labels.tolist()) == set(range(10))
    np.testing.assert_array_equal(clean.test_labels, noisy.test_labels)
    again = load_dataset("digits", label_noise=0.3, seed=3)
    np.testing.assert_array_equal(noisy.train_labels, again.train_labels)
    other = load_dataset("digits", label_noise=0.3, seed=4)
    assert not np.array_equal(noisy.train_labels, other.train_labels)


def test_validation_images_come_from_the_training_side():
    whole = load_dataset("digits")
    data = load_dataset("digits", validation=0.25, seed=5)
    assert len(data.train_labels) + len(data.test_labels) == len(whole.train_labels)
    training = {row.tobytes() for row in whole.train_inputs}
    assert all(row.tobytes() in training for row in data.test_inputs)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "cifar"}, "unknown dataset 'cifar'; there are digits, mnist"),
        ({"label_noise": 1.5}, "label_noise is a share"),
        ({"per_class": -1}, "per_class is a count"),
        ({"validation": 1.0}, "validation is a share"),
        ({"length": -1}, "length is a count"),
    ],
    ids=["name", "noise", "subset", "validation", "length"],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        load_dataset(**{"name": "digits", **options})


def write_batches(folder, counts, *, suffix=""):
    """CIFAR-10 batches of noise with a colour a class; what is in them by name."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    written = {}
    for name, count in counts.items():
        images = rng.integers(0, 64, (count, 32, 32, 3), dtype=np.uint8)
        labels = np.arange(count, dtype=np.uint8) % 10
        colours = np.stack([labels, 7 * labels % 10, 3 * labels % 10], -1)
        images += 20 * colours[:, None, None]
        planes = images.transpose(0, 3, 1, 2).reshape(count, -1)
        content = np.hstack([labels[:, None], planes]).tobytes()
        path = folder / f"{name}_{count}.bin{suffix}"
        path.write_bytes(lzma.compress(content, preset=0) if suffix else content)
        written[name] = images, labels
    return written


@pytest.mark.parametrize("suffix", ["", ".xz"], ids=["plain", "xz"])
@pytest.mark.parametrize("folder", ["", "cifar-10"], ids=["direct", "subfolder"])
def test_binary_batches_are_read_and_what_is_missing_is_said(tmp_path, folder, suffix):
    counts = {"data_batch_3": 20, "data_batch_1": 30, "test_batch": 10}
    written = write_batches(tmp_path / folder, counts, suffix=suffix)
    loaded = load("cifar10", str(tmp_path))
    assert loaded.picture == (32, 32, 3)
    assert loaded.note == "50 of 50,000 training images, 10 of 10,000 test images"
    batches = [written[name] for name in ("data_batch_1", "data_batch_3")]
    images, labels = map(np.concatenate, zip(*batches))
    np.testing.assert_array_equal(loaded.dataset.train_inputs, images)
    np.testing.assert_array_equal(loaded.dataset.train_labels, labels)
    np.testing.assert_array_equal(loaded.dataset.test_inputs, written["test_batch"][0])
    assert loaded.dataset.train_inputs.dtype == np.uint8


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "test_batch_10.bin.xz").unlink(), "has neither test"),
        (lambda folder: (folder / "data_batch_1_30.bin.xz").unlink(), "neither data"),
        (
            lambda folder: (folder / "test_batch_10.bin.xz").write_bytes(b"no xz"),
            "test_batch_10.bin.xz is damaged or cannot be read",
        ),
        (
            lambda folder: (folder / "test_batch_10.bin.xz").rename(
                folder / "test_batch.bin.xz"
            ),
            "10,000 images take 30,730,000 bytes, and 30,730 are there",
        ),
        (
            lambda folder: (folder / "data_batch_1_1.bin").write_bytes(bytes(3073)),
            "are the same batch",
        ),
        (
            lambda folder: (folder / "data_batch_2_1.bin").write_bytes(b"\n" * 3073),
            "has label 10, expected 0 to 9",
        ),
    ],
    ids=["no-test", "no-train", "garbage", "count", "twice", "label"],
)
def test_batches_that_do_not_fit_are_an_error(tmp_path, damage, message):
    write_batches(tmp_path, {"data_batch_1": 30, "test_batch": 10}, suffix=".xz")
    damage(tmp_path)
    with pytest.raises(UserError, match=message) as error:
        load("cifar10", str(tmp_path))
    assert str(tmp_path) in str(error.value)


def test_a_truncated_xz_file_is_named(tmp_path):
    write_batches(tmp_path, {"data_batch_1": 30, "test_batch": 10}, suffix=".xz")
    path = tmp_path / "data_batch_1_30.bin.xz"
    path.write_bytes(_cut(path.read_bytes()))
    with pytest.raises(UserError, match=f"{path} is damaged"):
        load("cifar10", str(tmp_path))


def spelt(loaded, row):
    return "".join(loaded.vocabulary[number] for number in row)


@pytest.mark.parametrize("folder", ["", "tinyshakespeare"])
def test_windows_follow_each_other_and_labels_are_the_next_character(tmp_path, folder):
    text = "".join(chr(97 + number * number % 23) for number in range(200))
    (tmp_path / folder).mkdir(exist_ok=True)
    (tmp_path / folder / "input.txt").write_text(text)
    loaded = load("shakespeare", str(tmp_path), length=7)
    data = loaded.dataset
    assert data.train_inputs.shape == data.train_labels.shape == (25, 7)
    assert data.test_inputs.dtype == data.test_labels.dtype == np.int32
    assert spelt(loaded, data.train_inputs.ravel()) == text[:175]
    assert spelt(loaded, data.train_labels.ravel()) == text[1:176]
    assert spelt(loaded, data.test_inputs.ravel()) == text[180:194]
    assert (loaded.classes, loaded.note) == (len(set(text)), "")
    end = load("shakespeare", str(tmp_path), length=7, validation=0.2).dataset
    assert spelt(loaded, end.test_inputs.ravel()) == text[140:175]
    with pytest.raises(UserError, match="200 characters, a tenth"):
        load("shakespeare", str(tmp_path), length=20)
    with pytest.raises(UserError, match="need one label an example"):
        load("shakespeare", str(tmp_path), length=7, per_class=1)


def write_reviews(folder, negative, positive):
    folder.mkdir(parents=True, exist_ok=True)
    for name, lines in (("neg", negative), ("pos", positive)):
        (folder / f"rt-polarity.{name}").write_bytes("\n".join(lines).encode("latin-1"))


@pytest.mark.parametrize("folder", ["", "rt-polarity"])
def test_sentences_are_numbered_by_the_words_of_the_training_side(tmp_path, folder):
    negative = [f"bad{number} too long" for number in range(20)]
    positive = [f"café {number} ." for number in range(20)]
    write_reviews(tmp_path / folder, [*negative, ""], positive)
    loaded = load("rt_polarity", str(tmp_path))
    words = ("<padding>", "<unknown>", ".", "café", "long", "too")
    assert loaded.vocabulary == words  # the others occur once
    data = loaded.dataset
    assert data.train_inputs.shape == (36, 3)
    assert data.test_inputs.shape == (4, 3)
    for inputs, labels in (data[:2], data[2:]):
        expected = np.where(labels[:, None], [[3, 1, 2]], [[1, 5, 4]])
        np.testing.assert_array_equal(inputs, expected)
    padded = load("rt_polarity", str(tmp_path), length=5).dataset
    np.testing.assert_array_equal(padded.train_inputs[:, 3:], 0)
    short = load("rt_polarity", str(tmp_path), length=2).dataset
    np.testing.assert_array_equal(short.train_inputs, data.train_inputs[:, :2])


def test_words_that_are_held_out_are_unknown(tmp_path):
    write_reviews(tmp_path, [f"w{n} w{n}" for n in range(10)], ["good good"] * 10)
    choices: tuple[dict[str, Any], ...] = ({}, {"validation": 0.2}, {"per_class": 4})
    for options in choices:
        loaded = load("rt_polarity", str(tmp_path), **options)
        data = loaded.dataset
        held = data.test_inputs[data.test_labels == 0]
        np.testing.assert_array_equal(held, 1)
        assert len(loaded.vocabulary) == 3 + (data.train_labels == 0).sum()


def test_a_missing_side_or_an_empty_one_is_an_error(tmp_path):
    write_reviews(tmp_path, ["so so"], ["fine"])
    (tmp_path / "rt-polarity.neg").write_text("\n\n")
    with pytest.raises(UserError, match=r"rt-polarity.neg has no sentences"):
        load("rt_polarity", str(tmp_path))
    (tmp_path / "rt-polarity.neg").unlink()
    with pytest.raises(UserError, match=r"has no rt-polarity.neg beside the other"):
        load("rt_polarity", str(tmp_path))


def test_embedded_text_takes_the_place_of_files_and_says_so():
    sonnets, reviews = load("shakespeare"), load("rt_polarity")
    assert "sonnets" in sonnets.note
    assert "Shall I compare thee" in spelt(
        sonnets, sonnets.dataset.train_inputs.ravel()
    )
    assert "made grammar" in reviews.note
    data = reviews.dataset
    np.testing.assert_array_equal(np.bincount(data.train_labels), [540, 540])
    np.testing.assert_array_equal(np.bincount(data.test_labels), [60, 60])
    assert 1 not in data.train_inputs
    again = load("rt_polarity", seed=4).dataset
    for one, other in zip(data, again):
        np.testing.assert_array_equal(one, other)


def test_flipped_images_are_the_images_or_their_mirrors():
    images = jnp.arange(64 * 2 * 3, dtype=jnp.uint8).reshape(64, 2, 3, 1)
    flipped = jax.jit(augment.flip)(jax.random.key(0), images)
    assert flipped.dtype == jnp.uint8
    same = (flipped == images).all((1, 2, 3))
    mirrored = (flipped == images[:, :, ::-1]).all((1, 2, 3))
    assert (same ^ mirrored).all()
    assert 20 < same.sum() < 44


def test_a_crop_moves_by_up_to_the_padding_and_zeros_come_in():
    picture = np.arange(1, 21, dtype=np.float32).reshape(4, 5, 1)
    crops = jax.jit(augment.crop, static_argnums=2)(
        jax.random.key(0), jnp.broadcast_to(picture, (64, 4, 5, 1)), 1
    )
    padded = np.pad(picture, ((1, 1), (1, 1), (0, 0)))
    windows = {
        padded[row : row + 4, column : column + 5].tobytes()
        for row in range(3)
        for column in range(3)
    }
    assert {np.asarray(image).tobytes() for image in crops} == windows


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_the_published_idx_files(name):
    folder = os.environ.get("VOLAX_DATA_DIR")
    if not folder:
        pytest.skip("needs the published IDX files: VOLAX_DATA_DIR is not set")
    data = load_dataset(name, folder)
    assert data.train_inputs.shape == (60_000, 784)
    assert data.test_inputs.shape == (10_000, 784)
    assert np.bincount(data.test_labels).min() > 800


def test_the_published_batches():
    folder = os.environ.get("VOLAX_DATA_DIR")
    if not folder:
        pytest.skip("needs the published batches: VOLAX_DATA_DIR is not set")
    data = load("cifar10", folder).dataset
    assert len(data.train_labels) % 10_000 == 0
    channels = data.train_inputs.mean((0, 1, 2)) / 255
    np.testing.assert_allclose(channels, (0.4914, 0.4822, 0.4465), atol=0.01)
