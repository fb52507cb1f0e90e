import contextlib
import csv
import io
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from ppvilg.data.sources import open_source


@pytest.fixture(scope="module")
def png():
    stream = io.BytesIO()
    Image.new("RGB", (10, 10), "red").save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def folder(tmp_path, png):
    (tmp_path / "sub").mkdir()
    for name in ("a.png", "b.png", "sub/c.png", "sub/猫.png"):
        (tmp_path / name).write_bytes(png)
    return tmp_path


def write_lines(path, rows):
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines) + "\n", "utf-8")


def test_every_bad_row_is_skipped_and_named(folder, png):
    (folder / "text.png").write_text("this is no image")
    (folder / "empty.png").write_bytes(b"")
    (folder / "half.png").write_bytes(png[:-20])
    (folder.parent / "outside.png").write_bytes(png)
    write_lines(
        folder / "captions.jsonl",
        [
            {"file": "a.png", "caption": "红苹果", "style": "photo"},
            {"image": "b.png", "captions": {"zh": ["猫", ""], "en": "a cat"}},
            {"picture": "sub/c.png", "captions": ["one", "一个"]},
            {"file": "a.png", "caption": "a red apple"},
            {"file": "gone.png", "caption": "x"},
            {"file": "text.png", "caption": "x"},
            {"file": "empty.png", "caption": "x"},
            {"file": "half.png", "caption": "x"},
            {"file": "../outside.png", "caption": "x"},
            {"file": "a.png", "caption": "   "},
            {"file": "b.png"},
            {"caption": "x"},
            {"file": 7, "caption": "x"},
            "{not json",
            "[1, 2]",
            "",
        ],
    )
    source = open_source(folder, "all")
    assert {record.key: record.captions for record in source.records} == {
        "a.png": {"zh": ["红苹果"], "en": ["a red apple"]},
        "b.png": {"zh": ["猫"], "en": ["a cat"]},
        "sub/c.png": {"en": ["one"], "zh": ["一个"]},
        "half.png": {"en": ["x"]},
    }
    assert source[0].metadata == {"style": "photo"}
    assert source.report.skipped == {
        "no such file": 1,
        "not an image": 2,
        "image outside the folder": 1,
        "no caption": 2,
        "row names no image": 2,
        "row is not a record": 2,
    }
    assert "captions.jsonl:5 (gone.png)" in str(source.report)

    checked = source.check()
    assert len(checked) == 3
    assert checked.report.skipped["the image is truncated"] == 1
    checked.report.write(folder / "report.json")
    written = json.loads((folder / "report.json").read_text("utf-8"))
    assert written["used"] == 3
    assert written["skipped"]["no such file"] == {"count": 1, "first": ["captions.jsonl:5 (gone.png)"]}


@pytest.mark.parametrize(("kind", "dialect"), [("csv", "excel"), ("tsv", "excel-tab")])
def test_tables(folder, kind, dialect):
    with open(folder / f"captions.{kind}", "w", encoding="utf-8-sig", newline="") as file:
        writer = csv.writer(file, dialect)
        writer.writerows(
            [
                ["File", "Caption", "language", "style"],
                ["a.png", 'a "red", apple\nwith a leaf', "en", "x"],
                ["sub/猫.png", "猫", "", "y"],
                ["b.png"],
                [],
            ]
        )
    source = open_source(folder, "all")
    assert [source[i].captions for i in range(2)] == [{"en": ['a "red", apple with a leaf']}, {"zh": ["猫"]}]
    assert source[1].metadata == {"style": "y"}
    assert source.report.skipped == {"no caption": 1}


def test_images_are_found_beside_the_captions_file(folder):
    write_lines(folder / "sub" / "captions.jsonl", [{"file": "c.png", "caption": "c"}])
    assert len(open_source(folder, "all")) == 1


def test_captions_file_must_be_clear(folder):
    with pytest.raises(ValueError, match="captions file"):
        open_source(folder, "all")
    write_lines(folder / "one.jsonl", [{"file": "a.png", "caption": "a"}])
    write_lines(folder / "two.jsonl", [{"file": "b.png", "caption": "b"}])
    with pytest.raises(ValueError, match=r"one\.jsonl, two\.jsonl.*data\.captions"):
        open_source(folder, "all")
    assert open_source(folder, "all", captions="two.jsonl").records[0].key == "b.png"
    with pytest.raises(ValueError, match=r"three\.jsonl"):
        open_source(folder, "all", captions="three.jsonl")


def test_nothing_left_says_why(folder):
    write_lines(folder / "captions.jsonl", [{"file": "gone.png", "caption": "a"}])
    with pytest.raises(ValueError, match=r"(?s)nothing to use.*no such file: captions.jsonl:1"):
        open_source(folder, "all")


def test_wrong_columns_and_encoding(folder):
    (folder / "captions.csv").write_text("path,title\na.png,x\n")
    with pytest.raises(ValueError, match="name the columns"):
        open_source(folder, "all")
    (folder / "captions.csv").write_bytes("file,caption\na.png,苹果\n".encode("gb18030"))
    with pytest.raises(ValueError, match="not UTF-8"):
        open_source(folder, "all")


def test_split_column_and_hash(folder, png):
    rows = [{"file": f"{n}.png", "caption": str(n)} for n in range(200)]
    for row in rows:
        (folder / row["file"]).write_bytes(png)
    write_lines(folder / "captions.jsonl", rows)
    train, validation = (open_source(folder, split, validation_fraction=0.2) for split in ("train", "validation"))
    keys = {record.key for record in validation.records}
    assert 20 < len(keys) < 60
    assert keys.isdisjoint(record.key for record in train.records)
    assert len(train) + len(validation) == 200
    write_lines(folder / "captions.jsonl", rows[:100])
    fewer = {record.key for record in open_source(folder, "validation", validation_fraction=0.2).records}
    assert fewer == {key for key in keys if int(key[:-4]) < 100}
    other = open_source(folder, "validation", validation_fraction=0.2, seed=1)
    assert {record.key for record in other.records} != fewer
    with pytest.raises(ValueError, match="has no split 'test'"):
        open_source(folder, "test")
    write_lines(folder / "captions.jsonl", [row | {"split": "test"} for row in rows[:3]] + rows[3:10])
    assert len(open_source(folder, "test")) == 3


def test_checksum_changes_with_the_content(folder, png):
    write_lines(folder / "captions.jsonl", [{"file": "a.png", "caption": "a"}])
    before = open_source(folder, "all").checksum
    assert open_source(folder, "all").checksum == before
    (folder / "a.png").write_bytes(png + b"\0")
    changed = open_source(folder, "all").checksum
    assert changed != before
    write_lines(folder / "captions.jsonl", [{"file": "a.png", "caption": "b"}])
    assert open_source(folder, "all").checksum not in (before, changed)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(["a.png", "b.png"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
columns = st.sampled_from(["file", "image", "picture", "caption", "captions", "text", "language", "split", "x"])


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.dictionaries(columns, values, max_size=6) | values, max_size=5))
def test_any_jsonl_gives_a_source_or_a_user_error(folder, rows):
    (folder / "captions.jsonl").write_text("\n".join(json.dumps(row) for row in rows), "utf-8")
    try:
        source = open_source(folder, "all")
    except ValueError:
        return
    assert all(texts and all(texts) for record in source.records for texts in record.captions.values())
    assert all(source[i].image for i in range(len(source)))


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(st.sampled_from('file,caption\n\r"\0a.png 猫\t\u2028'), max_size=60), st.booleans())
def test_any_csv_gives_a_source_or_a_user_error(folder, text, header):
    (folder / "captions.csv").write_text("file,caption\n" * header + text, "utf-8", newline="")
    with contextlib.suppress(ValueError):
        assert len(open_source(folder, "all")) > 0
