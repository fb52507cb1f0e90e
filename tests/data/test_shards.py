import gzip
import io
import json
import shutil
import tarfile

import pytest

from ppvilg.data.shards import pack_shard, write_manifest, write_shards
from ppvilg.data.sources import open_source

PICTURE = b"RIFF....WEBP" + b"\0" * 20


def samples(count=5):
    for number in range(count):
        split = "train" if number % 4 else "validation"
        yield split, f"k{number:03d}", PICTURE, {"captions": {"zh": [f"图{number}"]}, "style": "ab"[number % 2]}


@pytest.fixture
def folder(tmp_path):
    write_manifest(tmp_path, write_shards(tmp_path, samples(20), limit=6), packages={})
    return tmp_path


def test_equal_input_gives_equal_bytes(tmp_path):
    one = write_shards(tmp_path / "1", samples(9), limit=3)
    two = write_shards(tmp_path / "2", reversed(list(samples(9))), limit=3)
    assert one == two
    for entry in one:
        content = (tmp_path / "1" / entry["file"]).read_bytes()
        assert content == (tmp_path / "2" / entry["file"]).read_bytes()
        assert len(content) == entry["bytes"]
        assert content[3] == 0  # no flags: no file name
        assert content[4:8] == b"\0" * 4  # no time
    assert not list(tmp_path.rglob("*.tmp"))


def test_splits_and_samples(folder):
    train, validation = open_source(folder, "train"), open_source(folder, "validation")
    assert (len(train), len(validation), len(open_source(folder, "all"))) == (15, 5, 20)
    sample = validation[1]
    assert (sample.key, sample.image) == ("k004", PICTURE)
    assert sample.captions == {"zh": ["图4"]}
    assert sample.metadata == {"style": "a"}
    assert train.checksum != validation.checksum
    assert train.checksum == open_source(folder, "train").checksum


def test_unknown_split_names_the_known_ones(folder):
    with pytest.raises(ValueError, match="train, validation"):
        open_source(folder, "test")


def test_truncated_shard_is_named(folder):
    shard = folder / "train-00001.tar.gz"
    shard.write_bytes(shard.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"train-00001\.tar\.gz is truncated or damaged"):
        open_source(folder, "train")
    assert len(open_source(folder, "validation")) == 5


def test_one_wrong_bit_is_found(folder):
    shard = folder / "train-00000.tar.gz"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    with pytest.raises(ValueError, match=r"train-00000.*SHA-256"):
        open_source(folder, "train")


def test_missing_shard_is_named(folder):
    (folder / "train-00000.tar.gz").unlink()
    with pytest.raises(ValueError, match="train-00000"):
        open_source(folder, "train")


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": 1, "shards": [{}]}', '{"format": 99, "shards": []}'])
def test_damaged_manifest(folder, content):
    (folder / "manifest.json").write_text(content)
    with pytest.raises(ValueError, match=r"manifest\.json"):
        open_source(folder, "train")


def plain_tar(path, files):
    with tarfile.open(path, "w") as archive:
        for name, content in files:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def files(prefix, count):
    for number in range(count):
        yield f"{prefix}{number}.jpg", PICTURE + str(number).encode()
        yield f"{prefix}{number}.txt", f"a thing {prefix}{number}".encode()


def test_plain_tar_is_read_by_offset(tmp_path):
    plain_tar(tmp_path / "things-000000.tar", files("a", 30))
    plain_tar(tmp_path / "things-000001.tar", files("b", 30))
    source = open_source(tmp_path, "all")
    assert len(source) == 60
    assert all(isinstance(record.place, tuple) for record in source.records)
    assert source[37].image == PICTURE + b"7"
    assert source[37].captions == {"en": ["a thing b7"]}
    train, validation = (open_source(tmp_path, s, validation_fraction=0.3) for s in ("train", "validation"))
    assert {r.key for r in train.records} | {r.key for r in validation.records} == {r.key for r in source.records}
    assert 5 < len(validation) < 30


def test_shards_named_after_splits(tmp_path):
    plain_tar(tmp_path / "train-0.tar", files("a", 3))
    (tmp_path / "validation-0.tar.gz").write_bytes(pack_shard(files("b", 2)))
    assert len(open_source(tmp_path, "train")) == 3
    assert [r.key for r in open_source(tmp_path, "validation").records] == ["b0", "b1"]
    assert len(open_source(tmp_path, "all")) == 5
    with pytest.raises(ValueError, match="train, validation"):
        open_source(tmp_path, "test")


def test_incomplete_samples_are_reported(tmp_path):
    content = [
        ("1.json", b"{}"),
        ("2.jpg", PICTURE),
        ("3.jpg", PICTURE),
        ("3.json", b"{broken"),
        ("4.jpg", PICTURE),
        ("4.json", json.dumps({"caption": "  "}).encode()),
        ("5.jpg", PICTURE),
        ("5.json", json.dumps({"caption": "good", "language": "en", "size": 3}).encode()),
    ]
    plain_tar(tmp_path / "x.tar", content)
    source = open_source(tmp_path, "all")
    assert [record.key for record in source.records] == ["5"]
    assert source[0].metadata == {"size": 3}
    assert source.report.skipped == {"no image in the shard": 1, "no caption": 2, "damaged JSON": 1}


@pytest.mark.parametrize("damage", [lambda c: c[:700], lambda c: c[: len(c) // 2], lambda c: b"x" * 3000])
def test_damaged_plain_tar_is_named(tmp_path, damage):
    plain_tar(tmp_path / "x.tar", files("a", 10))
    (tmp_path / "x.tar").write_bytes(damage((tmp_path / "x.tar").read_bytes()))
    with pytest.raises(ValueError, match=r"x\.tar"):
        open_source(tmp_path, "all")


def test_damaged_gzip_is_named(tmp_path):
    (tmp_path / "x.tar.gz").write_bytes(gzip.compress(b"no tar" * 1000))
    with pytest.raises(ValueError, match=r"x\.tar\.gz"):
        open_source(tmp_path, "all")
    (tmp_path / "x.tar.gz").write_bytes(pack_shard(files("a", 50))[:-30])
    with pytest.raises(ValueError, match=r"x\.tar\.gz"):
        open_source(tmp_path, "all")


def test_keep(folder):
    kept = open_source(folder, "all", keep={"style": ["b"]})
    assert {record.metadata["style"] for record in kept.records} == {"b"}
    assert kept.report.filtered == 10
    with pytest.raises(ValueError, match="values are a, b"):
        open_source(folder, "all", keep={"style": ["c"]})
    with pytest.raises(ValueError, match="nobody"):
        open_source(folder, "all", keep={"nobody": ["c"]})


def test_file_vanishes_while_training(tmp_path):
    plain_tar(tmp_path / "x.tar", files("a", 2))
    source = open_source(tmp_path, "all")
    shutil.move(tmp_path / "x.tar", tmp_path / "y.tar")
    with pytest.raises(ValueError, match=r"x\.tar"):
        source[0]


def test_no_folder(tmp_path):
    with pytest.raises(ValueError, match="not a folder"):
        open_source(tmp_path / "nothing", "train")
