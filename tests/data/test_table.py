"""Records come out of a table as they went in, from memory and from files."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppvilg.data.questions import Question
from ppvilg.data.records import Record
from ppvilg.data.table import SCHEMA, RecordTable, to_batches

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
name = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00/"), min_size=1, max_size=12)
# Names that are no UTF-8 come with surrogates from the file system.
odd_name = st.one_of(name, st.just("caf\udce9.png"))
places = st.one_of(
    st.one_of(st.none(), st.binary(max_size=50)),
    odd_name.map(lambda name: Path("folder") / f"a{name}"),
    st.tuples(odd_name.map(lambda name: Path(f"a{name}")), st.integers(0, 2**40), st.integers(0, 2**40)),
)
records = st.builds(
    Record,
    key=odd_name,
    captions=st.dictionaries(st.sampled_from(["zh", "zh-hant", "en", ""]), st.lists(text, min_size=1, max_size=3), max_size=3),
    metadata=st.dictionaries(text, st.one_of(st.none(), st.booleans(), st.integers(), text, st.lists(text)), max_size=4),
    place=places,
    version=text,
    questions=st.lists(st.builds(Question, text, st.lists(text, max_size=3).map(tuple), text, text), max_size=2),
)


@settings(deadline=None, max_examples=60)
@given(st.lists(records, max_size=9), st.integers(1, 4))
def test_records_come_back(tmp_path_factory, given_records, rows):
    in_memory = RecordTable.of(given_records)
    assert list(in_memory) == given_records
    path = tmp_path_factory.mktemp("table") / "rows.arrow"
    write(path, given_records, rows)
    mapped = RecordTable.open([path, path])
    assert list(mapped) == given_records * 2
    assert [mapped[i] for i in range(-len(mapped), len(mapped))] == given_records * 4
    chosen = np.arange(len(mapped))[::-2]
    assert list(mapped.take(chosen)) == list(mapped[::-2]) == (given_records * 2)[::-2]


def test_an_index_out_of_range():
    table = RecordTable.of([Record("a", {"zh": ["红"]}, {}, b"")])
    for index in (1, -2):
        with pytest.raises(IndexError, match="has 1 samples"):
            table[index]
    assert len(RecordTable.open([])) == 0


@pytest.mark.parametrize("kept", [0, 5, 500])
def test_a_file_that_is_cut_off_is_named(tmp_path, kept):
    path = tmp_path / "rows.arrow"
    write(path, [Record(str(i), {"zh": ["红"]}, {}, b"1") for i in range(50)], 10)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"rows\.arrow cannot be read"):
        RecordTable.open([path])
    path.unlink()
    with pytest.raises(ValueError, match=r"rows\.arrow cannot be read"):
        RecordTable.open([path])


def test_mapped_rows_take_no_memory(tmp_path):
    path = tmp_path / "rows.arrow"
    write(path, (Record(f"{i:08}", {"zh": ["红色的苹果"]}, {"style": "noto"}, b"1" * 2000) for i in range(20000)), 1000)
    before = pa.total_allocated_bytes()
    table = RecordTable.open([path])
    assert table[12345].key == "00012345"
    assert pa.total_allocated_bytes() - before < 1e6 < path.stat().st_size / 40


def write(path: Path, given_records, rows: int) -> None:
    with pa.ipc.new_file(str(path), SCHEMA) as file:
        for batch in to_batches(given_records, rows):
            file.write_batch(batch)
