"""Text tokenizers: round trips, prompts, padding, ERNIE's embeddings."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from ppvilg.config import TextConfig, TransformerConfig, ViLGExperiment, load_config
from ppvilg.ernie import ernie_embeddings
from ppvilg.model.config import vilg_config
from ppvilg.model.init import init_weights
from ppvilg.model.vilg import ViLG
from ppvilg.text import (
    ErnieText,
    SentencePieceText,
    WordPieceText,
    check_known,
    encode_cut,
    encode_prompt,
    load_text_tokenizer,
    pad_batch,
    styled,
)
from ppvilg.train.vilg import text_table
from ppvilg.yttm import YttmText

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


@pytest.mark.parametrize("kind", [ErnieText, WordPieceText])
def test_texts_that_the_vocabulary_knows(kind):
    """With begin and end tokens around a text or without."""
    tokenizer = kind(EMOJI)
    assert check_known(tokenizer, "红") is check_known(tokenizer, "红苹果") is None
    assert check_known(tokenizer, "红\U0001fae0") == "the model knows 1 of the 2 tokens of '红\U0001fae0'"
    with pytest.raises(ValueError, match="no word that the model knows"):
        check_known(tokenizer, "\uc548\ub155")


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


def test_cutting_and_padding(ernie):
    without = WordPieceText(EMOJI)
    ids = ernie.encode("红苹果的")
    assert encode_cut(ernie, "红苹果的", 4) == [*ids[:3], ernie.end]
    assert encode_cut(ernie, "红苹果的", 6) == ids
    assert encode_cut(without, "红苹果的", 3) == ids[1:4]
    ids, valid = pad_batch([[1, 2], [1, 5, 6, 7, 2]], pad=9, multiple=4)
    np.testing.assert_array_equal(ids, [[1, 2, 9, 9, 9, 9, 9, 9], [1, 5, 6, 7, 2, 9, 9, 9]])
    np.testing.assert_array_equal(valid, ids != 9)


@pytest.fixture(scope="module")
def ernie_folder(tmp_path_factory) -> Path:
    """PaddleNLP's ErnieModel with random weights, and its vocabulary."""
    from paddlenlp.transformers import ErnieConfig, ErnieModel

    settings = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    folder = tmp_path_factory.mktemp("ernie")
    ErnieModel(ErnieConfig(vocab_size=32, **settings)).save_pretrained(str(folder))
    words = ["[PAD]", "[CLS]", "[SEP]", "[MASK]", *"一二三四五六七八九十红黄蓝绿青紫", "[UNK]"]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", "utf-8")
    return folder


def test_starting_from_ernies_embeddings(ernie_folder):
    from paddlenlp.transformers import ErnieModel

    expected = ErnieModel.from_pretrained(str(ernie_folder)).embeddings.word_embeddings.weight.numpy()
    embeddings = ernie_embeddings(str(ernie_folder), ErnieText(str(ernie_folder)))
    np.testing.assert_array_equal(embeddings, expected)
    config = ViLGExperiment(
        text=TextConfig(vocabulary_size=40, embeddings=str(ernie_folder), embedding_width=8),
        transformer=TransformerConfig(layers=1, hidden=16, heads=2),
    )
    table = text_table(embeddings, config)
    np.testing.assert_array_equal(table[:32], embeddings)
    drawn = ViLG(vilg_config(config))
    init_weights(dict(drawn.named_parameters()), config.train.seed, layers=1)
    np.testing.assert_array_equal(table[32:], drawn.embedding.text.weight.numpy()[32:])
    with pytest.raises(ValueError, match=r"text\.embedding_width=8"):
        text_table(embeddings, replace(config, text=TextConfig(vocabulary_size=40)))


def test_ernies_embeddings_of_another_vocabulary_are_refused(ernie_folder, tmp_path):
    shutil.copytree(ernie_folder, tmp_path / "ernie")
    words = (ernie_folder / "vocab.txt").read_text("utf-8").split()
    for changed, said in (
        (
            [*words[:5], *reversed(words[5:])],
            r"whose token 5 is '二', that of text\.vocabulary '\[UNK\]': set text\.vocabulary=",
        ),
        ([*words, "新"], r"which has 21 tokens, text\.vocabulary 22"),
    ):
        (tmp_path / "vocab.txt").write_text("\n".join(changed) + "\n", "utf-8")
        with pytest.raises(ValueError, match=said):
            ernie_embeddings(str(tmp_path / "ernie"), ErnieText(str(tmp_path / "vocab.txt")))
    (tmp_path / "ernie" / "vocab.txt").unlink()
    with pytest.raises(ValueError, match=r"no vocab\.txt in .*ernie.*go without, -o text\.embeddings=null"):
        ernie_embeddings(str(tmp_path / "ernie"), ErnieText(str(ernie_folder)))


def test_without_a_network_one_sentence_says_how_to_go_on(ernie_folder, tmp_path, monkeypatch):
    from paddlenlp.transformers import ErnieModel, ErnieTokenizer

    def fails(name: str):
        raise OSError(f"no network for {name}")

    monkeypatch.setattr(ErnieTokenizer, "from_pretrained", fails)
    monkeypatch.setattr(ErnieModel, "from_pretrained", fails)
    for name in ("vilg_300m", "vilg_10b", "vilg_10b_stage3"):
        text = load_config(f"configs/{name}.yml").text
        assert text.embeddings == text.vocabulary == "ernie-3.0-xbase-zh"
        with pytest.raises(
            ValueError, match=r"could be downloaded \(OSError\): give its vocab\.txt.*text\.embeddings=null"
        ) as caught:
            load_text_tokenizer(text)
        assert "\n" not in str(caught.value)
    with pytest.raises(
        ValueError, match=r"no ERNIE model could be loaded.*vocab\.txt, or go without, -o text\.embeddings=null"
    ):
        ernie_embeddings(str(ernie_folder), ErnieText(str(ernie_folder)))


@pytest.mark.parametrize(
    ("tokenizer", "words"),
    [
        (lambda: ErnieText(EMOJI), ("红", "红𝒳")),
        (lambda: WordPieceText(EMOJI), ("红", "红𝒳")),
        (lambda: YttmText("tests/convert/bpe.model"), ("кот", "кот 红")),
    ],
)
def test_words_are_known_whatever_stands_around_a_text(tokenizer, words):
    known, partly = words
    assert check_known(tokenizer(), known) is None
    assert check_known(tokenizer(), partly).startswith("the model knows ")


@pytest.mark.parametrize(
    ("prompt", "style", "expected"),
    [("红", "both", "大红"), ("red", "both", "a red"), ("red", "only_zh", "小red"), ("红", "none", "红")],
)
def test_a_style_is_asked_for_in_the_prompts_language(prompt, style, expected):
    assert styled(prompt, style, {"both": {"zh": "大{}", "en": "a {}"}, "only_zh": {"zh": "小{}"}, "none": {}}) == expected
