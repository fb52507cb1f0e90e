"""Files as other programs write them, read by units in any order, against what those programs or Python's own modules read."""

import csv
import gzip
import io
import json
import pickle
import random
import tarfile
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import TypeAdapter, ValidationError

from ppvilg.data.readers import AnyReader, Fault, Reader, Unit, text
from ppvilg.data.records import Record, read_place


def reader(**section) -> Reader:
    return TypeAdapter(AnyReader).validate_json(json.dumps(section, default=str))


def read(source: Reader) -> list[Record | Fault]:
    """All units, read in another order than listed and by copies as another process has them, and then put in order."""
    units = source.units()
    assert len({unit.id for unit in units}) == len(units)
    assert source.units() == units
    order = random.Random(0).sample(range(len(units)), len(units))
    read = {i: list(pickle.loads(pickle.dumps(source)).read(pickle.loads(pickle.dumps(units[i])))) for i in order}
    return [item for i in range(len(units)) for item in read[i]]


def records(source: Reader) -> dict[str, Record]:
    found = read(source)
    assert [item for item in found if isinstance(item, Fault)] == []
    by_key = {item.key: item for item in found}
    assert len(by_key) == len(found)
    return by_key


def jpeg(number: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), number % 256, np.uint8)).save(stream, "JPEG")
    return stream.getvalue()


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for number in range(4):
        (folder / f"{number}.jpg").write_bytes(jpeg(number))
    return folder


# Captions files


def test_a_table_is_read_as_pythons_csv_reads_it(images):
    captions = [f'line "{i}"\nand, \t{"猫" * (i % 50)}\r\nmore' for i in range(3000)]
    for kind, dialect in (("csv", "excel"), ("tsv", "excel-tab")):
        with open(images / f"a.{kind}", "w", encoding="utf-8-sig", newline="") as file:
            writer = csv.writer(file, dialect)
            writer.writerow(["file", "caption", "number"])
            writer.writerows([f"{i % 4}.jpg", caption, i] for i, caption in enumerate(captions))
        source = reader(format=kind, path=images / f"a.{kind}", unit_bytes=10_000)
        assert len(source.units()) > 20
        found = read(source)
        assert [item.metadata["number"] for item in found] == [str(i) for i in range(3000)]
        assert [item.key for item in found] == [f"{i % 4}.jpg" for i in range(3000)]
        assert [next(iter(item.captions.values()))[0] for item in found] == [" ".join(text.split()) for text in captions]


def test_rows_of_an_image_are_one_record_where_they_follow_each_other(images):
    lines = [{"file": f"{i // 50}.jpg", "caption": f"{i}", "number": i} for i in range(200)]
    lines += [{"file": "./1.jpg", "caption": "x"}, {"file": "1.jpg", "question": "这是什么", "answer": "猫"}]
    (images / "runs.jsonl").write_text("\n".join(map(json.dumps, lines)))
    found = read(reader(format="jsonl", path=images / "runs.jsonl", unit_bytes=300))
    assert [item.key for item in found] == ["0.jpg", "1.jpg", "2.jpg", "3.jpg", "1.jpg"]
    assert [text for item in found[:4] for text in item.captions["en"]] == [str(i) for i in range(200)]
    assert found[1].metadata == {"number": 50}
    assert [question.answers for question in found[4].questions] == [("猫",)]
    assert len(reader(format="jsonl", path=images / "runs.jsonl", unit_bytes=300).units()) == 5


def row(kind: str) -> st.SearchStrategy[bytes]:
    mark = b"\t" if kind == "tsv" else b","
    name = st.sampled_from([b"0.jpg", b"1.jpg", b"./1.jpg", b"9.jpg", b'"0.jpg"', b""])
    said = st.sampled_from([b"", b"a cat", "猫".encode(), b'"', b'""', b'"x"', b'"a\nb"', b'"a\rb', b'y"', b"\xff", b"\0"])
    if kind == "jsonl":
        name = st.text("01.jpg", max_size=5) | st.sampled_from(["0.jpg", "1.jpg"])
        good = st.builds(lambda name, said: json.dumps({"file": name, "caption": said}).encode(), name, st.text(max_size=5))
        bad = [b"", b" ", b"{", b"[]", b'{"file": "0.jpg", "caption": "\xff"}', b'{"file": "\\ud83d"}']
        return good | st.sampled_from(bad)
    return st.builds(lambda name, said: name + mark + said, name, said) | st.binary(max_size=8) | st.just(b"")


@pytest.mark.parametrize("kind", ["jsonl", "csv", "tsv"])
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data(), st.integers(1, 60), st.sampled_from([b"\n", b"\r\n"]), st.booleans())
def test_units_give_what_the_whole_file_gives(images, kind, data, size, end, mark):
    """Whatever is in the file, and wherever it is cut."""
    lines = data.draw(st.lists(row(kind), max_size=20))
    header = {"csv": [b"file,caption"], "tsv": [b"file\tcaption"]}.get(kind, [])
    path = images / f"property.{kind}"
    path.write_bytes(b"\xef\xbb\xbf" * mark + end.join(header + lines))
    whole = reader(format=kind, path=path)
    assert read(reader(format=kind, path=path, unit_bytes=size)) == read(whole)
    units = reader(format=kind, path=path, unit_bytes=size).units()
    assert [unit.first for unit in units] == [0, *(unit.last for unit in units[:-1])][: len(units)]
    assert units == [] or units[-1].last == path.stat().st_size


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_units_of_a_file_that_is_read_in_pieces(images, kind, monkeypatch):
    """The end of a unit's last row is looked for in a window, which grows if it must."""
    # Less than the longest row of JSON, since that is then looked for again, but in tables twice the longest field.
    monkeypatch.setattr(text, "_AHEAD", 100 if kind == "jsonl" else 3000)
    rows = [(f"{i % 3 // 2}.jpg", f"{i} " + "long \n" * random.Random(i).choice([0, 0, 3, 200])) for i in range(300)]
    path = images / f"pieces.{kind}"
    with open(path, "w", encoding="utf-8", newline="") as file:
        if kind == "jsonl":
            file.writelines(json.dumps({"file": name, "caption": caption}) + "\n" for name, caption in rows)
        else:
            csv.writer(file).writerows([("file", "caption"), *rows])
    found = read(reader(format=kind, path=path, unit_bytes=500))
    assert found == read(reader(format=kind, path=path, unit_bytes=1 << 30))
    assert [text.split()[0] for item in found for text in item.captions["en"]] == [str(i) for i in range(300)]
    assert len(reader(format=kind, path=path, unit_bytes=500).units()) > 50


def test_a_quote_that_is_never_closed_costs_one_row(images):
    """Though the csv module reads on from it up to its limit, beyond the unit and the window."""
    lines = [f"{i % 4}.jpg,{'' if i else chr(34)}caption {i} {'x' * 100}" for i in range(1500)]
    (images / "quote.csv").write_text("\n".join(["file,caption", *lines]))
    found = read(reader(format="csv", path=images / "quote.csv", unit_bytes=50_000))
    assert found[0] == Fault("quote.csv:2", "a quote is not closed")
    assert len(found) == 1500


def test_names_are_relative_to_the_file_or_the_folder_of_images(tmp_path, images):
    (tmp_path / "sub").mkdir()
    for name, file in (("sub/a.jsonl", "x.jpg"), ("b.jsonl", "sub/x.jpg"), ("sub/c.jsonl", str(images / "0.jpg"))):
        (tmp_path / name).write_text(json.dumps({"file": file, "caption": "x"}))
    (tmp_path / "sub/x.jpg").write_bytes(jpeg(0))
    found = read(reader(format="jsonl", path=tmp_path / "**/*.jsonl"))
    assert [item.key for item in found] == ["sub/x.jpg", "sub/x.jpg", f"c.jsonl:1 ({images / '0.jpg'})"]
    found = read(reader(format="jsonl", path=tmp_path / "sub", images=images))
    assert [item.key for item in found] == ["a.jsonl:1 (x.jpg)", "0.jpg"]
    assert found[0].reason == "image outside the folder" or found[0].reason == "no such file"


def test_memory_is_bounded_by_a_unit(images):
    path = images / "big.jsonl"
    with open(path, "w") as file:
        for i in range(6000):
            file.write(json.dumps({"file": f"{i % 4}.jpg", "caption": f"caption {i} " + "word " * 60}) + "\n")
    assert path.stat().st_size > 2_000_000
    source = reader(format="jsonl", path=path, unit_bytes=50_000)
    tracemalloc.start()
    count = sum(1 for unit in source.units() for _ in source.read(unit))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 6000
    assert peak < 1_000_000


# Tar shards


def test_shards_of_the_library_webdataset(tmp_path):
    wds = pytest.importorskip("webdataset")
    with wds.ShardWriter(str(tmp_path / "s-%03d.tar"), maxcount=7, verbose=0) as writer:
        for i in range(20):
            writer.write({"__key__": f"a.b/{i:04d}", "jpg": jpeg(i), "json": {"caption": f"猫 {i}", "n": i}, "seg.png": b"no"})
    with wds.TarWriter(str(tmp_path / "t.tar.gz"), compress=True) as writer:
        writer.write({"__key__": "0", "jpg": jpeg(7), "txt": "a cat\n"})
        writer.write({"__key__": "1", "jpeg": jpeg(8), "txt": "a dog\n"})
    found = records(reader(format="webdataset", path=tmp_path))
    expected = {}
    for file in sorted(tmp_path.iterdir()):
        for sample in wds.WebDataset(str(file), shardshuffle=False):
            shard = file.name.removesuffix(".gz").removesuffix(".tar")
            expected[f"{shard}/{sample['__key__']}"] = sample.get("jpg") or sample["jpeg"]
    assert {key: read_place(record.place) for key, record in found.items()} == expected
    assert len(expected) == 22
    assert found["s-002/a.b/0019"].captions == {"zh": ["猫 19"]}
    assert found["s-002/a.b/0019"].metadata == {"n": 19}
    assert found["t/1"].captions == {"en": ["a dog"]}
    assert isinstance(found["s-000/a.b/0000"].place, tuple)
    assert isinstance(found["t/0"].place, bytes)


@pytest.mark.parametrize("ending", ["tar", "tar.gz"])
def test_a_shard_cut_anywhere_gives_the_samples_before(tmp_path, ending):
    """Samples of three files, cut at every block and within; what is whole by the tar's own offsets is kept, or one less
    where it is not known whether the sample has more files."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        ends = []
        for i in range(5):
            for kind, content in (("jpg", jpeg(i)), ("json", b'{"n": 1}'), ("txt", b"a caption")):
                member = tarfile.TarInfo(f"{i}.{kind}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
            ends.append(archive.offset - 512 + len(b"a caption"))
    whole = stream.getvalue()
    path = tmp_path / f"x.{ending}"
    for cut in [*range(0, ends[-1] + 512, 512), *range(100, ends[-1], 1111)]:
        path.write_bytes(whole[:cut] if ending == "tar" else gzip.compress(whole[:cut], 1))
        *found, fault = reader(format="webdataset", path=path).read(Unit.of(path, 0, cut))
        assert fault == Fault(path.name, "the shard is cut off or damaged")
        complete = sum(end <= cut for end in ends)
        if complete == 1 and cut < ends[0] - len(b"a caption") + 512 + 512 + len(jpeg(1)):
            complete = 0  # of the first sample it is not known whether it is whole before the second has begun
        assert [item.key for item in found] == [f"x/{i}" for i in range(complete)]


# Parquet


def test_parquet_with_images(tmp_path):
    rows = [
        {"image": {"bytes": jpeg(i), "path": None}, "text": [f"one {i}", f"一 {i}"], "score": i / 8, "when": None, "raw": b"x"}
        for i in range(100)
    ]
    for part in range(2):
        table = pa.Table.from_pylist(rows[part * 50 : part * 50 + 50])
        pq.write_table(table, tmp_path / f"{part}.parquet", row_group_size=8)
    source = reader(format="parquet", path=tmp_path, unit_rows=16)
    assert len(source.units()) == 8
    found = read(source)
    assert [item.key for item in found] == [f"{part}.parquet:{i + 1}" for part in range(2) for i in range(50)]
    assert [item.place for item in found] == [row["image"]["bytes"] for row in rows]
    assert found[30].captions == {"en": ["one 30"], "zh": ["一 30"]}
    assert found[30].metadata == {"score": 30 / 8, "when": None}


def test_parquet_with_files_and_columns_by_name(tmp_path, images):
    rows = [{"URL": f"{i // 3 % 4}.jpg", "TEXT": f"caption {i}"} for i in range(24)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet", row_group_size=12)
    section = {"format": "parquet", "path": tmp_path / "a.parquet", "images": images}
    found = read(reader(**section, image_column="URL", caption_column="TEXT", unit_rows=1))
    assert [item.key for item in found] == [f"{i % 4}.jpg" for i in range(8)]
    assert found[7].captions == {"en": ["caption 21", "caption 22", "caption 23"]}
    with pytest.raises(ValueError, match=r"a\.parquet has no column 'url'; it has URL, TEXT"):
        reader(**section, image_column="url").units()
    with pytest.raises(ValueError, match="set image_column"):
        reader(**section).units()


def test_parquet_of_img2dataset(tmp_path):
    rows = [
        {"key": "000000000", "jpg": jpeg(1), "txt": "a cat", "url": "http://x"},
        {"key": "000000001", "jpg": None, "txt": "b", "url": "y"},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "00000.parquet")
    good, fault = read(reader(format="parquet", path=tmp_path))
    assert (good.captions, good.metadata["key"]) == ({"en": ["a cat"]}, "000000000")
    assert fault == Fault("00000.parquet:2", "row has no image")


# Conceptual Captions


@pytest.mark.parametrize("order", ["cc3m", "cc12m"])
@pytest.mark.parametrize("output", ["webdataset", "files"])
def test_conceptual_captions_with_the_list(tmp_path, order, output):
    """Some downloads failed, captions have quotes and commas, and the same picture may be in two shards."""
    wds = pytest.importorskip("webdataset")
    said = [f'a "picture", <PERSON> {i}' for i in range(25)]
    urls = [f"https://x.com/{i % 20}.jpg" for i in range(25)]
    lines = [(caption, url) if order == "cc3m" else (url, caption) for caption, url in zip(said, urls, strict=True)]
    header = ["caption\turl"] if order == "cc3m" else []
    (tmp_path / "list.tsv").write_text("\n".join([*header, *map("\t".join, lines)]))
    out = tmp_path / "out"
    out.mkdir()
    for shard in range(3):
        samples = [i for i in range(shard * 10, min(25, shard * 10 + 10)) if i != 13]
        parts = [({"url": urls[i], "caption": None, "width": 8}, jpeg(i), f"{shard:05d}{i % 10:04d}") for i in samples]
        (out / f"{shard:05d}_stats.json").write_text("{}")
        if output == "webdataset":
            with wds.TarWriter(str(out / f"{shard:05d}.tar")) as writer:
                for metadata, image, key in parts:
                    writer.write({"__key__": key, "jpg": image, "json": metadata})
        else:
            (out / f"{shard:05d}").mkdir()
            for metadata, image, key in parts:
                (out / f"{shard:05d}" / f"{key}.jpg").write_bytes(image)
                (out / f"{shard:05d}" / f"{key}.json").write_text(json.dumps(metadata))
    found = records(reader(format="img2dataset", path=out, tsv=tmp_path / "list.tsv", rows_per_shard=10))
    assert {key: record.captions["en"] for key, record in found.items()} == {
        f"{i // 10:05d}/{i // 10:05d}{i % 10:04d}": [said[i]] for i in range(25) if i != 13
    }
    assert read_place(found["00002/000020004"].place) == jpeg(24)
    assert found["00002/000020004"].metadata == {"url": urls[24], "width": 8}
    with pytest.raises(ValueError, match=r"no\.tsv"):
        reader(format="img2dataset", path=out, tsv=tmp_path / "no.tsv").units()


def test_img2dataset_with_captions_of_its_own(tmp_path):
    folder = tmp_path / "00000"
    folder.mkdir()
    for key, caption in (("000000000", "a cat"), ("000000001", "一只狗")):
        (folder / f"{key}.jpg").write_bytes(jpeg(0))
        (folder / f"{key}.txt").write_text(caption)
        (folder / f"{key}.json").write_text(json.dumps({"caption": caption, "key": key}))
    found = records(reader(format="img2dataset", path=tmp_path))
    assert [record.captions for record in found.values()] == [{"en": ["a cat"]}, {"zh": ["一只狗"]}]


# Published data sets


@pytest.fixture(scope="module")
def coco(tmp_path_factory) -> Path:
    """60 of COCO's pictures, five captions each, Chinese ones beside, questions and answers."""
    folder = tmp_path_factory.mktemp("coco")
    (folder / "train2014").mkdir()
    ids = [7 * i + 1 for i in range(60)]
    names = [f"COCO_train2014_{id:012d}.jpg" for id in ids]
    for id, name in zip(ids, names, strict=True):
        (folder / "train2014" / name).write_bytes(jpeg(id))
    said = [{"image_id": id, "id": 5 * id + k, "caption": f"picture {id}, caption {k}"} for k in range(5) for id in ids]
    images = [{"id": id, "file_name": name, "height": 8, "flickr_url": ""} for id, name in zip(ids, names, strict=True)]
    tree = {"info": {"year": 2014}, "images": images, "licenses": [], "annotations": said}
    (folder / "captions_train2014.json").write_text(json.dumps(tree))
    lines = [f"{name[:-4]}#{k}\t图 {name[-7:-4]} {k}\n" for name in names[::2] for k in range(1 + (name in names[::4]))]
    (folder / "imageid.human-written-caption.txt").write_text("".join(lines), "utf-8")
    (folder / "coco-cn_train.txt").write_text("\n".join(name[:-4] for name in names[:40]))
    (folder / "coco-cn_val.txt").write_text("\n".join(name[:-4] for name in names[40:]))
    common = {"info": {}, "data_type": "mscoco", "data_subtype": "train2014", "license": {}}
    asked = [{"image_id": id, "question": f"What is {id}?", "question_id": id * 10 + k} for id in ids for k in range(3)]
    given = [
        {
            "question_id": q["question_id"],
            "image_id": q["image_id"],
            "answer_type": "other",
            "answers": [{"answer": f"{q['question_id']}"}],
        }
        for q in asked
    ]
    (folder / "questions.json").write_text(json.dumps({**common, "task_type": "Open-Ended", "questions": asked}))
    (folder / "answers.json").write_text(json.dumps({"annotations": given, **common}))
    tree = {
        part: [{"image_id": f"{id:012d}", "question_id": f"{id}", "Question": "这是什么", "Answer": "猫"} for id in some]
        for part, some in (("train", ids), ("val", []))
    }
    (folder / "FM-IQA.json").write_text(json.dumps(tree))
    (folder / "aic.json").write_text(json.dumps([{"url": "", "image_id": name, "caption": ["一 \n", "二"]} for name in names]))
    return folder


FILES = ["captions_train2014.json", "imageid.human-written-caption.txt", "coco-cn_train.txt", "coco-cn_val.txt"]
QUESTIONS = ["questions.json", "answers.json"]


@pytest.mark.parametrize(
    "names", [FILES, QUESTIONS, FILES[1:2], ["aic.json"], ["FM-IQA.json"], [*FILES, *QUESTIONS, "FM-IQA.json"]]
)
def test_parts_of_annotations_are_disjoint_and_together_all(coco, names):
    section = {"format": "annotations", "files": [str(coco / name) for name in names], "images": coco}
    whole = records(reader(**section))
    source = reader(**section, unit_bytes=600)
    assert len(source.units()) > 1
    assert len(list(source.read(source.units()[0]))) < len(whole) * 0.8
    assert records(source) == whole
    assert len(whole) == (30 if names == FILES[1:2] else 60)


def test_coco_with_chinese_captions_beside(coco):
    whole = records(reader(format="annotations", files=[str(coco / name) for name in FILES], images=coco))
    record = whole["train2014/COCO_train2014_000000000015.jpg"]
    assert record.captions == {"en": [f"picture 15, caption {k}" for k in range(5)], "zh": ["图 015 0"]}
    assert [record.metadata["split"] for record in whole.values()].count("validation") == 20
    assert read_place(record.place) == jpeg(15)


def test_questions_with_their_answers(coco):
    whole = records(reader(format="annotations", files=[str(coco / name) for name in QUESTIONS], images=coco, unit_bytes=1500))
    questions = [question for record in whole.values() for question in record.questions]
    assert len(questions) == 180
    assert all(question.answers == (question.id,) and question.kind == "other" for question in questions)


def test_one_file_of_many_without_columns_does_not_stop_the_others(tmp_path):
    (tmp_path / "0.jpg").write_bytes(jpeg(0))
    (tmp_path / "a.csv").write_text("0.jpg,x\n")
    (tmp_path / "b.csv").write_text("file,caption\n0.jpg,x\n")
    (tmp_path / "c.csv").write_text("")
    pq.write_table(pa.table({"image": [jpeg(0)], "caption": ["x"]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"other": [1]}), tmp_path / "b.parquet")
    found = read(reader(format="csv", path=tmp_path))
    reason = "the first line does not name the columns"
    assert [item.key for item in found] == ["a.csv", "0.jpg", "c.csv"]
    assert [found[0].reason, found[2].reason] == [reason, reason]
    _, fault = read(reader(format="parquet", path=tmp_path))
    assert fault == Fault("b.parquet", "the file does not have the columns")
    with pytest.raises(ValueError, match="name the columns"):
        reader(format="csv", path=tmp_path / "a.csv").units()


def test_a_file_without_ends_of_lines_is_cut_all_the_same(images, monkeypatch):
    """As a disk leaves one that was not written to its end: gigabytes of zeros."""
    monkeypatch.setattr(text, "_AHEAD", 100)
    monkeypatch.setattr(text, "_LONGEST", 1000)
    line = json.dumps({"file": "0.jpg", "caption": "x"}).encode() + b"\n"
    (images / "zeros.jsonl").write_bytes(line * 3 + bytes(20_000))
    source = reader(format="jsonl", path=images / "zeros.jsonl", unit_bytes=500)
    assert max(unit.last - unit.first for unit in source.units()) < 3000
    found = read(source)
    assert found[0].captions == {"en": ["x"] * 3}
    assert {item.reason for item in found[1:]} == {"row is not a record"}


# What a config gets wrong


@pytest.mark.parametrize("format", ["jsonl", "csv", "webdataset", "parquet", "img2dataset"])
def test_what_is_not_there_is_said_at_once(tmp_path, format):
    with pytest.raises(ValueError, match=r"nothing.*correct"):
        reader(format=format, path=tmp_path / "nothing").units()
    with pytest.raises(ValueError, match="correct"):
        reader(format=format, path=tmp_path / "*" / "nothing").units()
    with pytest.raises(ValueError, match="correct"):
        reader(format=format, path=tmp_path).units()


def test_annotations_that_are_none(tmp_path):
    for name, content, said in (
        ("a.json", "{}", "of no known format"),
        ("b.txt", "a text\n", "of no known format"),
        ("c.json", "x", "JSON"),
    ):
        (tmp_path / name).write_text(content)
        with pytest.raises(ValueError, match=said):
            reader(format="annotations", files=[str(tmp_path / name)], images=tmp_path).units()
    with pytest.raises(ValueError, match="cannot read"):
        reader(format="annotations", files=[str(tmp_path / "d.json")], images=tmp_path).units()


@pytest.mark.parametrize(
    "section", [{"format": "xml", "path": "x"}, {"format": "jsonl"}, {"format": "csv", "path": "x", "colour": 1}]
)
def test_sections_are_checked(section):
    with pytest.raises(ValidationError):
        reader(**section)
