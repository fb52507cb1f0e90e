"""A first try: a few pictures and a captions file written by hand."""

import os

import pytest

from ppvilg.config import ImageDataConfig, load_config
from ppvilg.data.sources import open_source
from ppvilg.data.splits import open_splits
from ppvilg.train import train
from tests.helpers import metrics


@pytest.fixture
def pictures(tiny_data, tmp_path):
    """A folder of ten pictures without captions."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(10):
        (folder / f"{i}.png").write_bytes((tiny_data / f"{i:02d}.png").read_bytes())
    return folder


def write_csv(folder, *rows: str) -> None:
    (folder / "captions.csv").write_text("\n".join(["file,caption", *rows]) + "\n", "utf-8", newline="")


def captions(folder) -> dict[str, list[str]]:
    source = open_source(folder, "all")
    return {record.key: [text for texts in record.captions.values() for text in texts] for record in source.records}


def skipped(folder) -> dict[str, list[str]]:
    return open_source(folder, "all").report.names


@pytest.mark.parametrize("fraction", [0.01, 0.05, 0.5, 0.99])
def test_both_splits_of_few_samples_have_some(pictures, fraction):
    for count in (2, 3, 10):
        write_csv(pictures, *(f"{i}.png,红色方块" for i in range(count)))
        for seed in range(10):
            data = ImageDataConfig(path=str(pictures), validation_fraction=fraction)
            splits = [{record.key for record in source.records} for source in open_splits(data, seed)]
            assert all(splits)
            assert len(splits[0]) + len(splits[1]) == len(splits[0] | splits[1]) == count


def test_what_is_moved_into_the_validation_split_is_said(pictures):
    write_csv(pictures, *(f"{i}.png,红色方块" for i in range(10)))
    _, validation = open_splits(ImageDataConfig(path=str(pictures), validation_fraction=0.001), 0)
    assert "one sample is kept for validation, since by their hash data.validation_fraction = 0.001 of 10" in str(
        validation.report
    )


@pytest.mark.parametrize("why", ["one picture", "no fraction", "all rows are train", "none is readable", "none is kept"])
def test_without_a_sample_for_validation_training_goes_on_and_says_so(pictures, why):
    rows, data = [f"{i}.png,红色方块,train" for i in range(10)], ImageDataConfig(path=str(pictures))
    if why == "one picture":
        rows = ["3.png,红色方块,"]
    elif why == "no fraction":
        rows, data = [f"{row[:-5]}" for row in rows], ImageDataConfig(path=str(pictures), validation_fraction=0.0)
    elif why == "none is readable":
        (pictures / "broken.png").write_bytes((pictures / "0.png").read_bytes()[:-20])
        rows.append("broken.png,红色方块,validation")
    elif why == "none is kept":
        (pictures / "other.png").write_bytes((pictures / "0.png").read_bytes())
        rows, data = [*rows, "other.png,红,validation,y"], ImageDataConfig(path=str(pictures), keep={"style": ["x"]})
        rows[:10] = [f"{row},x" for row in rows[:10]]
    (pictures / "captions.csv").write_text("\n".join(["file,caption,split,style", *rows]) + "\n", "utf-8")
    training, validation = open_splits(data, 0)
    assert [record.key for record in validation.records] == [record.key for record in training.records]
    assert len(training) == (1 if why == "one picture" else 10)
    assert "there is no sample for validation" in str(validation.report)
    assert "validation" not in str(training.report)


def test_a_split_that_was_named_has_to_be_there(pictures):
    write_csv(pictures, *(f"{i}.png,红色方块" for i in range(10)))
    with pytest.raises(ValueError, match="has no split 'holdout'"):
        open_splits(ImageDataConfig(path=str(pictures), validation_split="holdout"), 0)
    with pytest.raises(ValueError, match=r"no sample in the split 'train', but 10 in 'validation' \(data.validation_fraction"):
        open_splits(ImageDataConfig(path=str(pictures), validation_fraction=1.0), 0)


@pytest.mark.parametrize("name", ["val", "Valid", "dev", "validation"])
def test_a_validation_split_by_any_of_its_names(pictures, name):
    (pictures / "captions.csv").write_text(
        "file,caption,split\n0.png,红,training\n1.png,红,Train\n2.png,红," + name + "\n", "utf-8"
    )
    assert [len(open_source(pictures, split)) for split in ("train", "validation", "val", name)] == [2, 1, 1, 1]


def test_one_picture_by_two_names_is_one_sample(pictures):
    (pictures / "sub").mkdir()
    write_csv(pictures, "0.png,一", "./0.png,二", "sub/../0.png,三", "1.png,四")
    assert captions(pictures) == {"0.png": ["一", "二", "三"], "1.png": ["四"]}


def test_links_to_pictures_elsewhere(pictures, tmp_path):
    links = tmp_path / "links"
    links.mkdir()
    (links / "a.png").symlink_to(pictures / "0.png")
    (links / "more").symlink_to(pictures)
    write_csv(links, "a.png,一", "more/1.png,二", "../pictures/2.png,三", f"{pictures}/3.png,四")
    assert captions(links) == {"a.png": ["一"], "more/1.png": ["二"]}
    assert list(skipped(links)) == ["image outside the folder"]


def test_folders_named_with_dots(pictures, monkeypatch):
    write_csv(pictures, "0.png,一", "../1.png,二")
    monkeypatch.chdir(pictures)
    for path in (".", "../pictures", "./../pictures/."):
        assert captions(path) == {"0.png": ["一"]}


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c"])
def test_other_ends_of_lines_inside_captions_are_spaces(pictures, separator):
    write_csv(pictures, f"0.png,红{separator}色", f'1.png,"蓝{separator}色"', "2.png,绿")
    expected = {"0.png": ["红 色"], "1.png": ["蓝 色"], "2.png": ["绿"]}
    assert captions(pictures) == expected
    os.remove(pictures / "captions.csv")
    rows = [f'{{"file": "{file}", "caption": "{text}"}}' for file, text in (("0.png", f"红{separator}色"), ("2.png", "绿"))]
    (pictures / "captions.jsonl").write_text("\n".join(rows), "utf-8")
    if separator in ("\u2028", "\u2029", "\x85"):  # the others are not allowed in JSON
        assert captions(pictures) == {"0.png": ["红 色"], "2.png": ["绿"]}


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_quote_that_is_not_closed_costs_its_own_row(pictures, end):
    rows = [
        '0.png,"红色',
        "1.png,蓝色",
        '2.png,"绿,色"',
        '3.png,"两行' + end + '文字"',
        '4.png,又"红',
        '5.png,"“大”',
        "6.png,黄",
    ]
    (pictures / "captions.csv").write_text(end.join(["file,caption", *rows]), "utf-8", newline="")
    assert captions(pictures) == {
        "1.png": ["蓝色"],
        "2.png": ["绿,色"],
        "3.png": ["两行 文字"],
        "4.png": ['又"红'],
        "6.png": ["黄"],
    }
    assert skipped(pictures) == {"a quote is not closed": ["captions.csv:2", "captions.csv:8"]}


def test_quotes_around_a_word(pictures):
    write_csv(pictures, '0.png,"Big" red apple', '1.png,a "green" one', '2.png,"a ""blue"" one"')
    assert captions(pictures) == {"0.png": ["Big red apple"], "1.png": ['a "green" one'], "2.png": ['a "blue" one']}


def test_ten_pictures_just_train(tiny_configs, pictures, tmp_path):
    write_csv(pictures, *(f"{i}.png,红色方块" for i in range(10)))
    for task, more in (("vqgan", []), ("vilg", [f"train.tokenizer={tmp_path}/vqgan"])):
        given = [f"data.path={pictures}", "data.validation_fraction=0.05", f"train.output={tmp_path}/{task}", *more]
        fewer = ["train.steps=2", "train.warmup_steps=1", "train.batch_size=16"]  # more than there are
        assert train(load_config(tiny_configs / f"{task}.yml", [*given, *fewer]))
        assert metrics(tmp_path / task, "validation")
        report = (tmp_path / task / "data_report.txt").read_text("utf-8")
        assert "(validation): 1 samples used" in report
