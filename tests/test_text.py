"""Text tokenizers: round trips, prompts, padding, ERNIE's embeddings."""

from dataclasses import replace

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from ppvilg.config import TextConfig, TransformerConfig, ViLGExperiment
from ppvilg.model.config import vilg_config
from ppvilg.model.init import init_weights
from ppvilg.model.vilg import ViLG
from ppvilg.text import (
    ErnieText,
    SentencePieceText,
    cut,
    encode_prompt,
    ernie_embeddings,
    load_text_tokenizer,
    pad_batch,
)
from ppvilg.train.vilg import text_table

EMOJI = "data/emoji/vocab.txt"


@pytest.fixture(scope="module")
def ernie() -> ErnieText:
    return ErnieText(EMOJI)


@pytest.mark.parametrize("text", ["一张noto风格的红苹果图片", "red apple in noto style", "按键3，noto风格", "绿茶 tea 2 杯"])
def test_ernie_round_trip(ernie, text):
    ids = ernie.encode(text)
    assert (ids[0], ids[-1]) == (ernie.begin, ernie.end)
    assert ernie.decode(ids).replace(" ", "") == text.replace(" ", "")
    assert ernie.decode(ernie.encode("red apple")) == "red apple"
    assert ernie.decode([*ids, ernie.pad, ernie.pad]) == ernie.decode(ids)


@pytest.fixture(scope="module")
def paddlenlps():
    from paddlenlp.transformers import ErnieTokenizer

    return ErnieTokenizer(EMOJI)


words = st.sampled_from(
    [
        "noto风格的红苹果",
        "Red APPLE",
        "tea2杯",
        "[SEP]",
        "[UNK]a",
        "ΑΣ",
        "é",
        "e\u0301",
        "\u00ad",
        "x" * 101,
        "\x1c",
        "\ud800",
        "\U00011f00",
        "\U0001171e",
    ]
)


@settings(max_examples=300, deadline=None)
@given(st.lists(words | st.text(max_size=8)).map("".join))
def test_ernie_gives_the_ids_of_paddlenlps_tokenizer(ernie, paddlenlps, text):
    expected = paddlenlps.convert_tokens_to_ids(paddlenlps.tokenize(text))
    assert ernie.encode(text) == [paddlenlps.cls_token_id, *expected, paddlenlps.sep_token_id]
    assert (ernie.size, ernie.pad) == (len(paddlenlps), paddlenlps.pad_token_id)


def test_a_vocabulary_without_special_tokens_is_refused(tmp_path):
    (tmp_path / "vocab.txt").write_text("[PAD]\n[CLS]\n苹\n", "utf-8")
    with pytest.raises(ValueError, match=r"has no \[SEP\]"):
        ErnieText(str(tmp_path))


def test_vocabulary_folder_and_saving(ernie, tmp_path):
    name = ernie.save(tmp_path)
    assert ErnieText(str(tmp_path)).encode("红苹果") == ErnieText(str(tmp_path / name)).encode("红苹果")


@pytest.fixture(scope="module")
def sentencepiece_model(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("spm")
    text = folder / "text.txt"
    text.write_text("\n".join(["红色的苹果在桌子上", "蓝色的大海和天空", "a red apple on the table"] * 20), "utf-8")
    prefix = str(folder / "text")
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=prefix, vocab_size=60, hard_vocab_limit=False, minloglevel=2
    )
    return prefix + ".model"


def test_sentencepiece_round_trip_and_saving(sentencepiece_model, tmp_path):
    tokenizer = SentencePieceText(sentencepiece_model)
    ids = tokenizer.encode("红色的大海")
    assert (ids[0], ids[-1]) == (tokenizer.begin, tokenizer.end)
    assert tokenizer.decode(ids) == "红色的大海"
    again = SentencePieceText(str(tmp_path / tokenizer.save(tmp_path)))
    assert again.encode("红色的大海") == ids


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (TextConfig(vocabulary="missing/vocab.txt"), "no vocab.txt at missing/vocab.txt"),
        (TextConfig(vocabulary="tests"), "no vocab.txt at tests"),
        (TextConfig(vocabulary=EMOJI, vocabulary_size=10), "give at least that many"),
        (TextConfig(tokenizer="sentencepiece", vocabulary=EMOJI), "not a sentencepiece model"),
    ],
)
def test_what_is_no_tokenizer(config, said):
    with pytest.raises(ValueError, match=said):
        load_text_tokenizer(config)


def test_prompts(ernie):
    assert encode_prompt(ernie, "红苹果", 5) == ernie.encode("红苹果")
    with pytest.raises(ValueError, match="empty"):
        encode_prompt(ernie, "  \n", 5)
    with pytest.raises(ValueError, match="has 4 tokens, but the model reads at most 3"):
        encode_prompt(ernie, "红苹果果", 5)


def test_cutting_and_padding():
    assert cut([1, 5, 6, 7, 2], 4) == [1, 5, 6, 2]
    assert cut([1, 2], 4) == [1, 2]
    ids, valid = pad_batch([[1, 2], [1, 5, 6, 7, 2]], pad=9, multiple=4)
    np.testing.assert_array_equal(ids, [[1, 2, 9, 9, 9, 9, 9, 9], [1, 5, 6, 7, 2, 9, 9, 9]])
    np.testing.assert_array_equal(valid, ids != 9)


def test_starting_from_ernies_embeddings(tmp_path):
    from paddlenlp.transformers import ErnieConfig, ErnieModel

    settings = {
        "vocab_size": 30,
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 8,
    }
    ErnieModel(ErnieConfig(**settings)).save_pretrained(str(tmp_path))
    embeddings = ernie_embeddings(str(tmp_path))
    config = ViLGExperiment(
        text=TextConfig(vocabulary_size=40, embeddings=str(tmp_path), embedding_width=8),
        transformer=TransformerConfig(layers=1, hidden=16, heads=2),
    )
    table = text_table(embeddings, config)
    np.testing.assert_array_equal(table[:30], embeddings)
    drawn = ViLG(vilg_config(config))
    init_weights(dict(drawn.named_parameters()), config.train.seed, layers=1)
    np.testing.assert_array_equal(table[30:], drawn.embedding.text.weight.numpy()[30:])
    with pytest.raises(ValueError, match=r"text\.embedding_width=8"):
        text_table(embeddings, replace(config, text=TextConfig(vocabulary_size=40)))
    with pytest.raises(ValueError, match="no ERNIE model could be loaded"):
        ernie_embeddings(str(tmp_path / "missing"))
