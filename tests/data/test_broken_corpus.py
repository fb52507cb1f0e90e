"""Of a corpus with broken inputs of every kind, all are named once, and all good ones are read."""

import json
import random

import pytest
from pydantic import TypeAdapter

from ppvilg.data.images import decode_image
from ppvilg.data.readers import AnyReader, Fault
from ppvilg.data.records import read_place
from tests.data.broken_corpus import write_corpus


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus") / "data")


@pytest.fixture(scope="module")
def items(corpus):
    readers = [TypeAdapter(AnyReader).validate_json(json.dumps(section)) for section in corpus.readers]
    work = [(reader, unit) for reader in readers for unit in reader.units()]
    assert len({unit.id for _, unit in work}) == len(work) > 40
    random.Random(0).shuffle(work)
    return [item for reader, unit in work for item in reader.read(unit)]


def test_a_tenth_is_broken(corpus):
    share = len(corpus.broken) / (len(corpus.broken) + len(corpus.good))
    assert 0.08 < share < 0.12


def test_every_broken_input_is_named_once(corpus, items):
    faults = sorted((item.key, item.reason) for item in items if isinstance(item, Fault))
    assert faults == sorted(corpus.broken.items())


def test_every_good_one_is_read_once(corpus, items):
    records = sorted((item.key, item.captions) for item in items if not isinstance(item, Fault))
    assert records == sorted((key, {"en": [caption]}) for key, caption in corpus.good.items())


def test_images_are_where_their_records_say(corpus, items):
    failed = []
    for item in items:
        if not isinstance(item, Fault):
            try:
                decode_image(read_place(item.place), 8)
            except ValueError:
                failed.append(item.key)
    assert sorted(failed) == sorted(corpus.undecodable)
