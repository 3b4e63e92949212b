import gzip
import os
from urllib.error import URLError

import numpy as np
import pytest
from sklearn import datasets

from volax.examples._errors import UserError
from volax.examples.data import load_dataset
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


@pytest.mark.parametrize("failure", [URLError("no route"), ValueError("md5 checksum")])
def test_without_files_and_connection_one_sentence_says_so(
    tmp_path, monkeypatch, failure
):
    def fetch(*args, **kwargs):
        raise failure

    monkeypatch.setattr(datasets, "fetch_openml", fetch)
    with pytest.raises(UserError, match="cannot be used") as error:
        load_dataset("mnist", str(tmp_path))
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
    ],
    ids=["name", "noise", "subset", "validation"],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        load_dataset(**{"name": "digits", **options})


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_the_published_files(name):
    folder = os.environ.get("VOLAX_DATA_DIR")
    if not folder:
        pytest.skip("needs the published IDX files: VOLAX_DATA_DIR is not set")
    data = load_dataset(name, folder)
    assert data.train_inputs.shape == (60_000, 784)
    assert data.test_inputs.shape == (10_000, 784)
    assert np.bincount(data.test_labels).min() > 800
