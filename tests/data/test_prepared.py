"""Prepared folders: rows and tokens come back, damage is named, and nothing is read that is not asked for."""

import numpy as np
import pyarrow as pa
import pytest

from ppvilg.data import prepared
from ppvilg.data.records import Record
from ppvilg.data.sources import EmptySplitError, open_source
from ppvilg.data.table import SCHEMA, to_batches

CODES, LENGTH = 16, 4
RECORDS = [Record(str(i), {"zh": [f"红{i}"]}, {"style": ["noto", "flat"][i % 2]}, None if i % 3 else b"png") for i in range(50)]


def rows(records, tokens):
    schema = SCHEMA.append(prepared.token_field(LENGTH, CODES))
    first = 0
    for batch in to_batches(records, 7):
        column = prepared.token_column(tokens[first : first + len(batch)], CODES)
        yield pa.RecordBatch.from_arrays([*batch.columns, column], schema=schema)
        first += len(batch)


@pytest.fixture
def folder(tmp_path):
    tokens = np.random.default_rng(0).integers(0, CODES, (50, LENGTH))
    schema = SCHEMA.append(prepared.token_field(LENGTH, CODES))
    shards, unigram = [], {}
    for split, parts in (("train", (range(20), range(20, 40))), ("validation", (range(40, 50),))):
        for number, part in enumerate(parts):
            batches = rows(RECORDS[part.start : part.stop], tokens[part])
            shards.append(prepared.write_shard(tmp_path, f"{split}-{number:05d}.arrow", split, schema, batches))
        every = tokens[parts[0].start : parts[-1].stop]
        unigram[split] = np.bincount(every.ravel(), minlength=CODES).tolist()
    prepared.write_manifest(tmp_path, prepared.Manifest(8, shards, "abc", CODES, unigram))
    return tmp_path, tokens


def test_rows_and_tokens_come_back(folder):
    path, tokens = folder
    source = open_source(path, "train")
    assert list(source.records) == RECORDS[:40]
    chosen = [39, 0, 19, 20, 20]
    np.testing.assert_array_equal(source.tokens[chosen], tokens[chosen])
    assert source.tokens[[0]].dtype == np.int64
    assert source[0].image == b"png"
    assert len(open_source(path, "val")) == 10
    everything = open_source(path, "all")
    np.testing.assert_array_equal(everything.tokens[range(50)], tokens)
    np.testing.assert_array_equal(everything.tokens.unigram, np.bincount(tokens.ravel(), minlength=CODES))


def test_tokens_are_those_of_the_records_that_are_kept(folder):
    path, tokens = folder
    source = open_source(path, "train", keep={"style": ["flat"]})
    assert list(source.records) == RECORDS[1:40:2]
    np.testing.assert_array_equal(source.tokens[range(20)], tokens[1:40:2])
    np.testing.assert_array_equal(source.tokens.unigram, np.bincount(tokens[1:40:2].ravel(), minlength=CODES))
    assert source.fingerprint != open_source(path, "train").fingerprint


def test_the_unigram_counts_are_the_manifest_s(folder, monkeypatch):
    source = open_source(folder[0], "train")
    monkeypatch.setattr(prepared.TokenTable, "__getitem__", None)  # no token is read
    np.testing.assert_array_equal(source.tokens.unigram, np.bincount(folder[1][:40].ravel(), minlength=CODES))


def test_equal_rows_make_equal_files(folder, tmp_path_factory):
    path, tokens = folder
    schema = SCHEMA.append(prepared.token_field(LENGTH, CODES))
    again = prepared.write_shard(tmp_path_factory.mktemp("again"), "x", "train", schema, rows(RECORDS[:20], tokens))
    assert again.sha256 == prepared.read_manifest(path).shards[0].sha256


def test_an_image_that_was_not_kept(folder):
    with pytest.raises(ValueError, match="prepared without their images"):
        open_source(folder[0], "train")[1]


def test_damage_is_named(folder):
    path, _ = folder
    assert prepared.verify(path) == 3
    shard = path / "train-00001.arrow"
    content = shard.read_bytes()
    shard.write_bytes(content[:-9])
    with pytest.raises(ValueError, match=r"train-00001.arrow is cut off"):
        open_source(path, "train")
    assert len(open_source(path, "validation")) == 10
    shard.write_bytes(content[:500] + bytes([content[500] ^ 1]) + content[501:])
    with pytest.raises(ValueError, match=r"train-00001.arrow is damaged"):
        prepared.verify(path)
    shard.unlink()
    with pytest.raises(ValueError, match=r"train-00001.arrow is missing"):
        open_source(path, "train")
    (path / "manifest.json").write_text('{"format": "ppvilg-prepared-1", "shards": 3}', "utf-8")
    with pytest.raises(ValueError, match=r"manifest.json is damaged"):
        open_source(path, "train")


def test_a_split_that_there_is_not(folder):
    with pytest.raises(EmptySplitError, match="no split 'test'; it has train, validation"):
        open_source(folder[0], "test")
    with pytest.raises(ValueError, match="holds no prepared data"):
        prepared.verify(folder[0].parent)


@pytest.mark.parametrize(("codes", "kind"), [(65536, pa.uint16()), (65537, pa.int32())])
def test_tokens_take_two_bytes_where_that_is_enough(codes, kind):
    tokens = np.array([[0, codes - 1]])
    column = prepared.token_column(tokens, codes)
    assert column.type == prepared.token_field(2, codes).type
    assert column.type.value_type == kind
    assert column.flatten().to_pylist() == [0, codes - 1]
