"""Retrieval and styles against scikit-learn."""

import numpy as np
import pytest

from ppvilg.evaluation.retrieval import nearest_style, pooled_recall, recall_at, style_accuracy


def test_recall_against_scikit_learn():
    from sklearn.metrics import top_k_accuracy_score

    rng = np.random.default_rng(0)
    similarity, correct = rng.normal(size=[200, 30]), rng.integers(0, 30, 200)
    similarity[np.arange(200), correct] += 1
    found = recall_at(similarity, correct, (1, 5, 30))
    expected = {f"R@{k}": top_k_accuracy_score(correct, similarity, k=k, labels=np.arange(30)) for k in (1, 5)}
    assert found == expected | {"R@30": 1}
    assert 0 < found["R@1"] < found["R@5"] < 1


def test_ties_count_against_the_model():
    assert recall_at(np.zeros([3, 5]), [0, 1, 4]) == {"R@1": 0, "R@5": 1}
    assert recall_at(np.zeros([3, 6]), [0, 1, 4]) == {"R@1": 0, "R@5": 0}


def test_several_right_images():
    similarity = np.array([[9, 9, 1, 0], [5, 6, 7, 8], [3, 3, 2, 1]])
    # Two right ones that are equal do not stand in each other's way; the best right one counts; the last has a tie.
    assert recall_at(similarity, [[0, 1], [0, 2], [0, 3]], (1, 2)) == {"R@1": 1 / 3, "R@2": 1}
    assert recall_at(np.array([[-np.inf, 0.0]]), [1]) == {"R@1": 1, "R@5": 1}


def test_refused_similarities():
    similarity = np.zeros([2, 3])
    with pytest.raises(ValueError, match=r"shape \[3\]"):
        recall_at(similarity[0], [0])
    with pytest.raises(ValueError, match="2 texts, but right images for 1"):
        recall_at(similarity, [0])
    for wrong in ([], [3], [-1], 3):
        with pytest.raises(ValueError, match="text 1 has the right images"):
            recall_at(similarity, [0, wrong])
    with pytest.raises(ValueError, match="not numbers"):
        recall_at(similarity * np.nan, [0, 1])


STYLES = {"水彩": 0.0, "油画": 1.0, "素描": 2.0}


def style_features(seed, samples=30):
    rng = np.random.default_rng(seed)
    return {name: (rng.normal(size=[samples, 5]) + mean).astype("float32") for name, mean in STYLES.items()}


def test_styles_against_scikit_learn():
    from sklearn.neighbors import NearestCentroid

    known, asked = style_features(1), style_features(2, samples=40)
    labels = np.repeat(list(STYLES), 30)
    reference = NearestCentroid().fit(np.concatenate(list(known.values())).astype("float64"), labels)
    features, styles = np.concatenate(list(asked.values())), np.repeat(list(STYLES), 40)
    assert nearest_style(features, known) == list(reference.predict(features.astype("float64")))
    accuracy = style_accuracy(features, list(styles), known)
    assert accuracy == pytest.approx(reference.score(features.astype("float64"), styles))
    assert 0.5 < accuracy < 1


def test_styles_that_tie():
    same = {"a": np.zeros([1, 2]), "b": np.zeros([3, 2]), "c": np.full([1, 2], 4.0)}
    features = np.array([[0.0, 0.0], [4.0, 4.0]])
    assert nearest_style(features, same) == ["a", "c"]
    assert style_accuracy(features, ["a", "c"], same) == 0.5


def test_refused_styles():
    known = style_features(1)
    features = known["水彩"]
    with pytest.raises(ValueError, match="30 images, but styles of 1"):
        style_accuracy(features, ["水彩"], known)
    with pytest.raises(ValueError, match="no features of the style 版画"):
        style_accuracy(features, ["版画"] * 30, known)
    with pytest.raises(ValueError, match="no styles to compare"):
        nearest_style(features, {})
    with pytest.raises(ValueError, match="different lengths, 5 and 4"):
        nearest_style(features, known | {"油画": features[:, :4]})
    with pytest.raises(ValueError, match=r"shape \[0, 5\]"):
        nearest_style(features, known | {"油画": features[:0]})
    with pytest.raises(ValueError, match="not finite"):
        nearest_style(features * np.inf, known)


def test_pooled_recall_against_counting():
    """With a pool of all it is `recall_at` over everything; with fewer it lies above, as chance does."""
    generator = np.random.default_rng(0)
    items = generator.normal(size=(40, 6))
    queries = items + generator.normal(size=(40, 6))
    labels = [str(i) for i in range(40)]
    similarity = queries @ items.T
    ranks = (similarity > np.diag(similarity)[:, None]).sum(1)
    assert pooled_recall(queries, items, labels, 40, 0) == {"R@1": (ranks < 1).mean(), "R@5": (ranks < 5).mean()}
    found = [pooled_recall(generator.normal(size=(40, 6)), items, labels, 10, seed)["R@1"] for seed in range(50)]
    assert np.mean(found) == pytest.approx(0.1, abs=0.02)


def test_pooled_recall_draws_no_item_with_the_same_label():
    items = np.eye(4)
    assert pooled_recall(items[[0, 0, 2, 2]], items[[0, 0, 2, 2]], ["a", "a", "b", "b"], 4, 0)["R@1"] == 1
    assert pooled_recall(items[[0, 0, 2, 2]], items[[0, 0, 2, 2]], ["a", "b", "c", "d"], 4, 0)["R@1"] == 0
    with pytest.raises(ValueError, match="shapes"):
        pooled_recall(items, items[:3], ["a"] * 3, 4, 0)
