"""An evaluation from its config to its report."""

import io
import json
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ppvilg.config import EvalExperiment
from ppvilg.evaluation.page import write_page
from ppvilg.evaluation.parts import compute, joined_parts, open_evaluation
from ppvilg.evaluation.report import summarise
from ppvilg.files import write_whole


def evaluate(config: EvalExperiment, split: str, output: Path, rank: int = 0, processes: int = 1) -> bool:
    """Evaluate the model in the folder `config.model` on a split and write report.json and report.html into a folder.

    Of several processes each computes every `processes`th part, beginning with its `rank`; whoever finds all parts there
    writes the report. Finished parts of an interrupted evaluation are kept. Returns whether the report was written. Raises
    `ValueError` as `open_evaluation` does.
    """
    evaluation = open_evaluation(config, split, output)
    own = evaluation.parts[rank::processes]
    progress = tqdm(own, unit="part", desc=f"{split}, {len(evaluation.pairs)} pairs", disable=rank > 0)
    for part in progress:
        if not part.is_file():
            compute(evaluation, part)
    if not all(part.is_file() for part in evaluation.parts):
        return False
    arrays = joined_parts(evaluation.parts)
    report = summarise(evaluation, arrays)
    examples = io.BytesIO()
    np.savez_compressed(examples, **{name: array for name, array in arrays.items() if name.startswith("pictures/")})
    write_whole(output / "examples.npz", examples.getvalue())
    write_whole(output / "report.json", json.dumps(report, ensure_ascii=False, indent=1) + "\n")
    write_page(output / "report.html", [output])
    return True
