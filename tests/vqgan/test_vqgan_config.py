"""Combinations of codebook keys that cannot stand together."""

import pytest

from ppvilg.config import load_config


@pytest.mark.parametrize("override", ["vqgan.codebook.revive_after=5", "vqgan.codebook.normalize=true"])
def test_gumbel_codes_are_neither_revived_nor_normalised(tmp_path, override):
    (tmp_path / "x.yml").write_text("task: vqgan\nvqgan: {codebook: {learning: gumbel}}\n")
    load_config(tmp_path / "x.yml")
    with pytest.raises(ValueError, match=override.partition("=")[0]):
        load_config(tmp_path / "x.yml", [override])
