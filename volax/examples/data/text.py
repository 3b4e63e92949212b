"""The text sets: characters of Shakespeare, sentences of film reviews."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from volax.examples._errors import UserError
from volax.examples.data.splits import Dataset, Loaded, hold_out

PADDING, UNKNOWN = 0, 1  # the first two words of every vocabulary
_TEST_SHARE = 0.1
_LEAST = 2  # a word that the training side has once teaches nothing
_POLARITY = ("rt-polarity.neg", "rt-polarity.pos")  # labels 0 and 1
_THINGS = ("acting", "plot", "script", "ending", "music", "camera", "pace", "cast")
_WORDS = (
    ("dull", "clumsy", "hollow", "tired", "noisy", "shapeless", "stale", "cold"),
    ("warm", "clever", "moving", "honest", "funny", "graceful", "fresh", "witty"),
)


def shakespeare(data_dir: str, length: int) -> Loaded:
    """Every character of a text, to be predicted from those before it.

    The text is `tinyshakespeare/input.txt` or `input.txt` in `data_dir`, else twelve
    sonnets that are part of this package. Its last tenth is for testing.
    """
    path = _in_folders(data_dir, "tinyshakespeare", "input.txt")
    text = _read(path or Path(__file__).with_name("sonnets.txt"))
    note = "" if path else "no input.txt in data_dir: twelve sonnets in its place"
    vocabulary = tuple(sorted(set(text)))
    numbers = {character: number for number, character in enumerate(vocabulary)}
    codes = np.array([numbers[character] for character in text], np.int32)
    end = len(codes) - round(_TEST_SHARE * len(codes))
    if len(codes) - end <= length:
        raise UserError(
            f"{path or 'the embedded text'} has {len(codes):,} characters, a tenth of "
            f"which are for testing: too few for windows of {length}"
        )
    data = Dataset(*_windows(codes[:end], length), *_windows(codes[end:], length))
    return Loaded(data, len(vocabulary), vocabulary=vocabulary, note=note)


def _windows(codes: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Characters [n, length], and those that follow each of them."""
    count = (len(codes) - 1) // length * length
    inputs, labels = codes[:count], codes[1 : count + 1]
    return inputs.reshape(-1, length), labels.reshape(-1, length)


def rt_polarity(data_dir: str) -> Loaded:
    """Sentences of film reviews as strings, a tenth of each class for testing.

    They are `rt-polarity.pos` and `.neg`, one a line, in `data_dir` or its subfolder
    `rt-polarity`, else made from a small grammar. Label 1 means that the author likes
    the film.
    """
    paths = [_in_folders(data_dir, "rt-polarity", name) for name in _POLARITY]
    note = ""
    if all(path is None for path in paths):
        negative, positive = _made()
        note = (
            "no rt-polarity.pos in data_dir: sentences of a made grammar in its place"
        )
    else:
        for path, name in zip(paths, _POLARITY):
            if path is None:
                raise UserError(f"{data_dir} has no {name} beside the other one")
        negative, positive = (_lines(path) for path in paths if path)
    sentences = np.array([*negative, *positive], object)
    labels = np.repeat(np.arange(2, dtype=np.int32), [len(negative), len(positive)])
    whole = Dataset(sentences, labels, sentences[:0], labels[:0])
    return Loaded(hold_out(whole, _TEST_SHARE), 2, note=note)


def tokenized(loaded: Loaded, length: int) -> Loaded:
    """Sentences as the numbers of their words, padded to one length.

    Args:
      loaded: with strings as inputs.
      length: words of a sentence, of which a longer one loses its end; 0 for those of
        the longest training sentence.

    Returns:
      Inputs as int32 [n, length], and the vocabulary: padding, what stands for unknown
      words, and the words that occur twice or more on the training side.
    """
    data = loaded.dataset
    sides = [
        [s.split() for s in side] for side in (data.train_inputs, data.test_inputs)
    ]
    counts = Counter(word for words in sides[0] for word in words)
    known = sorted(word for word, count in counts.items() if count >= _LEAST)
    vocabulary = ("<padding>", "<unknown>", *known)
    numbers = {word: number for number, word in enumerate(vocabulary)}
    length = length or max(map(len, sides[0]))
    train, test = (_numbered(side, numbers, length) for side in sides)
    data = data._replace(train_inputs=train, test_inputs=test)
    return loaded._replace(dataset=data, vocabulary=vocabulary)


def _numbered(
    side: Iterable[list[str]], numbers: dict[str, int], length: int
) -> np.ndarray:
    """Word numbers [sentences, length]."""
    rows = [[numbers.get(word, UNKNOWN) for word in words[:length]] for words in side]
    return np.array([row + [PADDING] * (length - len(row)) for row in rows], np.int32)


def _in_folders(data_dir: str, folder: str, name: str) -> Path | None:
    paths = (Path(data_dir, folder, name), Path(data_dir, name)) if data_dir else ()
    return next((path for path in paths if path.is_file()), None)


def _read(path: Path) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:  # rt-polarity was published in Latin-1
        return content.decode("latin-1")


def _lines(path: Path) -> list[str]:
    lines = [line.strip() for line in _read(path).split("\n")]
    if not any(lines):
        raise UserError(f"{path} has no sentences")
    return [line for line in lines if line]


def _made() -> tuple[list[str], list[str]]:
    """Negative and positive sentences, 600 of each, always the same.

    A negation turns the word behind it round, and what follows a "but" decides, so that
    counting words is not enough.
    """
    rng = np.random.default_rng(0)

    def clause(liked: int) -> str:
        negated = rng.random() < 0.3
        word = rng.choice(_WORDS[liked ^ negated])
        verb = rng.choice(["is", "feels", "seems"])
        adverb = rng.choice(["never", "hardly"] if negated else ["", "truly", "rather"])
        return " ".join(f"the {rng.choice(_THINGS)} {verb} {adverb} {word}".split())

    def sentence(liked: int) -> str:
        kind = rng.choice(["one", "and", "but"])
        if kind == "one":
            return clause(liked) + " ."
        before = clause(liked if kind == "and" else 1 - liked)
        return f"{before} , {kind} {clause(liked)} ."

    return [sentence(0) for _ in range(600)], [sentence(1) for _ in range(600)]
