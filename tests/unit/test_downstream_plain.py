"""Plain files, and what all datasets share: the encoder's traps, labels, the destination, the table."""

from __future__ import annotations

import pytest

from fairseq.cli import preprocess_task
from fairseq.errors import ConfigError, DataError, DataNotFoundError, OutOfScopeError
from tests.downstream import TINY, dictionary_of_ids, preprocess, symbols, texts, write

TEXTS = ["The cat sat on the mat.", "A man rode the horse home.", "She reads a long book.", "It rains in May again."]
LABELS = ["good", "bad", "good", "fair"]


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "raw/train.raw.input0", *TEXTS)
    write(tmp_path / "raw/train.label", *LABELS)
    write(tmp_path / "raw/dev.raw.input0", *TEXTS[:2])
    write(tmp_path / "raw/dev.label", *LABELS[:2])
    write(tmp_path / "raw/test.raw.input0", *TEXTS[2:])
    return tmp_path / "raw"


def files(directory):
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_raw_text_and_its_ids_give_the_same_files(tmp_path, folder, capsys):
    raw = preprocess(folder, "plain")
    assert texts(raw, "input0", "valid") == TEXTS[:2] and texts(raw, "input0", "test") == TEXTS[2:]
    assert symbols(raw, "label", "train") == LABELS
    assert (raw / "label/dict.txt").read_text().splitlines()[:3] == ["good 2", "bad 1", "fair 1"]
    for split in ("train", "valid", "test"):
        write(tmp_path / f"ids/{split}.input0", *symbols(raw, "input0", split))
    write(tmp_path / "ids/train.label", *LABELS)
    write(tmp_path / "ids/valid.label", *LABELS[:2])
    assert files(preprocess(tmp_path / "ids", "sentence_prediction", bpe=(), dest="other")) == files(raw)
    table = capsys.readouterr().out.splitlines()
    assert table[1].split()[:2] == ["train", "4"] and table[1].endswith("good 2, bad 1, fair 1")
    assert "--task sentence_prediction --criterion sentence_prediction --num-classes 3" in table[5]


def test_lines_lose_the_whitespace_at_their_ends(tmp_path, folder):
    write(folder / "train.raw.input0", *(f"  {text}\t " for text in TEXTS), end="\r\n")
    assert texts(preprocess(folder, "plain"), "input0", "train") == TEXTS


def test_numbers(tmp_path, folder):
    write(folder / "train.label", "1 2.5", "0 -1", "3 1e-3", "0.5 7")
    write(folder / "dev.label", "1 1", "2 2")
    data = preprocess(folder, "plain", "--regression-target", "--divide-labels-by", 3)
    assert (
        data / "label/train.label"
    ).read_text() == "0.333333 0.833333\n0 -0.333333\n1 0.000333333\n0.166667 2.33333\n"


def test_sets_of_labels(tmp_path, folder, capsys):
    write(folder / "train.label", "good bad", "", "bad", "fair good bad")
    with pytest.raises(DataError, match="line 1: expected one label, but found 'good bad'"):
        preprocess(folder, "plain")
    data = preprocess(folder, "plain", "--multi-label")
    assert symbols(data, "label", "train") == ["good bad", "", "bad", "fair good bad"]
    assert "--num-classes 3 --multi-label" in capsys.readouterr().out


def test_encoding_twice_is_refused(tmp_path, folder):
    encoded = symbols(preprocess(folder, "plain"), "input0", "train")
    write(folder / "train.raw.input0", *encoded)
    with pytest.raises(DataError, match=r"train\.raw\.input0 consists of numbers .* encode it twice"):
        preprocess(folder, "plain", "--overwrite")


def test_numbers_that_are_text_may_be_encoded(tmp_path, folder):
    write(folder / "train.raw.input0", *["999999 + 888888 = 1888887"] * 4)
    assert texts(preprocess(folder, "plain"), "input0", "train")[0] == "999999 + 888888 = 1888887"


def test_raw_text_without_an_encoder_is_refused(tmp_path, folder):
    with pytest.raises(DataError, match=r"train\.raw\.input0: 100% of the words are not in the dictionary"):
        preprocess(folder, "plain", bpe=())


def test_a_dictionary_of_another_encoder_is_refused(tmp_path, folder):
    other = write(tmp_path / "words.txt", *(f"word{k} 1" for k in range(20)))
    with pytest.raises(DataError, match="belongs to this encoder"):
        preprocess(folder, "plain", "--srcdict", other)


@pytest.mark.parametrize(
    ("file", "lines", "sentence"),
    [
        ("train.label", LABELS[:3], r"as many lines as each other: .*train\.raw\.input0 has 4, .*train\.label has 3"),
        (
            "dev.label",
            ["good", "ugly"],
            r"dev\.label, line 2: the label 'ugly' is not among those of the training data",
        ),
        ("train.label", ["good", "", "bad", "bad"], r"train\.label, line 2: the label is missing"),
        ("train.raw.input0", [*TEXTS[:3], " "], r"train\.raw\.input0, line 4: the text is empty"),
        ("train.raw.input1", TEXTS, r"dev\.raw\.input0, line 1: this example has 1 texts, but the first has 2"),
        ("test.raw.input0", [], r"test\.raw\.input0 has no examples"),
    ],
)
def test_mistakes_name_file_and_line(tmp_path, folder, file, lines, sentence):
    write(folder / file, *lines)
    with pytest.raises(DataError, match=sentence):
        preprocess(folder, "plain")
    assert not (tmp_path / "bin").exists()


def test_labels_that_are_no_numbers(tmp_path, folder):
    with pytest.raises(DataError, match=r"train\.label, line 1: a regression label must be a finite number, .* 'good'"):
        preprocess(folder, "plain", "--regression-target")


def test_an_earlier_result_is_replaced_only_on_demand(tmp_path, folder):
    write(folder / "dev.raw.input1", *TEXTS[:2])
    write(folder / "train.raw.input1", *TEXTS)
    write(folder / "test.raw.input1", *TEXTS[:2])
    data = preprocess(folder, "plain")
    assert (data / "input1").is_dir()
    for path in folder.glob("*.input1"):
        path.unlink()
    write(data / "notes.txt", "mine")
    with pytest.raises(ConfigError, match="has input0, input1, label already; replace it with --overwrite"):
        preprocess(folder, "plain")
    preprocess(folder, "plain", "--overwrite")
    assert sorted(path.name for path in data.iterdir()) == ["input0", "label", "notes.txt"]


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (("--workers", 0), "--workers must be at least 1"),
        (("--divide-labels-by", 5), "needs --regression-target"),
        (("--regression-target", "--multi-label"), "exclude each other"),
    ],
)
def test_options_that_do_not_fit(folder, flags, sentence):
    with pytest.raises(ConfigError, match=sentence):
        preprocess(folder, "plain", *flags)


def test_unknown_tasks_and_places(tmp_path, folder):
    with pytest.raises(ConfigError, match="unknown task 'glu'; did you mean 'glue'"):
        preprocess(folder, "glu")
    with pytest.raises(ConfigError, match="unknown task 'stsb'; did you mean 'glue/STS-B'"):
        preprocess(folder, "stsb")
    with pytest.raises(OutOfScopeError, match="'wsc' belongs to Winograd schemas"):
        preprocess(folder, "wsc")
    with pytest.raises(DataNotFoundError, match="has no train.raw.input0"):
        preprocess(write(tmp_path / "none/readme", "x").parent, "plain")
    with pytest.raises(ConfigError, match="is a file; give a directory"):
        preprocess(folder, "plain", dest=write(tmp_path / "file", "x").name)


def test_the_dictionary_beside_the_encoder_is_the_default(tmp_path, folder):
    home = dictionary_of_ids(tmp_path / "model").parent
    for name in ("encoder.json", "vocab.bpe"):
        (home / name).write_bytes((TINY / name).read_bytes())
    words = ["--task", "plain", "--data-dir", folder, "--bpe", "gpt2", "--gpt2-encoder-json", home / "encoder.json"]
    words += ["--gpt2-vocab-bpe", home / "vocab.bpe", "--dest", tmp_path / "bin"]
    args = preprocess_task.get_parser().parse_args([str(word) for word in words])
    preprocess_task.main(args)
    assert (tmp_path / "bin/input0/dict.txt").read_bytes() == (home / "dict.txt").read_bytes()
    (home / "dict.txt").unlink()
    with pytest.raises(ConfigError, match="give the dictionary of the model with --srcdict"):
        preprocess_task.main(preprocess_task.get_parser().parse_args([*map(str, words), "--overwrite"]))


def test_the_data_themselves_are_not_replaced(tmp_path, folder):
    before = files(folder)
    with pytest.raises(ConfigError, match="is the directory of the data"):
        preprocess(folder, "plain", "--overwrite", dest="raw")
    assert files(folder) == before
