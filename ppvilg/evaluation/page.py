"""Reports as one HTML page that needs nothing else: tables, the plot over candidates, and images to look at."""

import base64
import io
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ppvilg.evaluation.report import Report, read_report
from ppvilg.files import read_arrays, write_whole

_TEMPLATE = Path(__file__).parents[1] / "assets" / "report.html"
# Where a smaller value is the better one; of the others the larger one is, and precision and recall trade off.
_FALLING = ("FD", "FID", "bits")
_PERCENT = ("R@", "precision", "recall", "nearest style", "style", "exact match")


def write_page(path: Path, folders: list[Path]) -> None:
    """Write the page of one finished evaluation, or of several side by side.

    Raises `ValueError` for a folder without a report, a damaged file, or evaluations of images of different sizes.
    """
    from jinja2 import Environment, StrictUndefined

    reports = [read_report(folder) for folder in folders]
    names = _names(folders)
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    page = environment.from_string(_TEMPLATE.read_text("utf-8")).render(
        names=names,
        reports=reports,
        differences=differences(reports),
        tables=[_table(title, note, key, reports, names) for title, note, key in _TABLES],
        plot=_plot(reports, names),
        headings=[heading for heading, *_ in _columns(reports, names)],
        examples=_examples(reports, folders, names),
    )
    write_whole(path, page)


def differences(reports: list[Report]) -> list[str]:
    """What keeps the numbers of several reports from being compared, a sentence each."""
    found = []
    for label, pick in (
        ("splits", lambda report: report["split"]),
        ("pairs", lambda report: report["pairs_checksum"]),
        ("feature extractors", lambda report: report["extractor"]["weights"]),
        ("dual encoders", lambda report: report["settings"]["dual_encoder"]),
        ("pools of captions", lambda report: report["settings"]["pool"]),
        ("units of captions", lambda report: report["settings"]["unit"]),
    ):
        if len({pick(report) for report in reports}) > 1:
            found.append(f"The {label} differ: measures that depend on them cannot be compared.")
    return found


_TABLES = (
    ("Text to image", "Each set of pictures against the real pictures of the same captions.", "pictures"),
    ("Likelihood", "How well the model predicts a picture from a caption, and a caption from a picture.", "likelihood"),
    ("Image to text", "Captions against all captions that a picture has in their language.", "captions"),
)


def _names(folders: list[Path]) -> list[str]:
    """Short names that tell the folders apart."""
    if len(folders) == 1:
        return [""]
    parts = [folder.resolve().parts for folder in folders]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    raise ValueError(f"{folders[0]} is given more than once: give different evaluations")


def _table(title: str, note: str, key: str, reports: list[Report], names: list[str]) -> dict[str, Any]:
    """Rows of all reports; a baseline that has the same measures everywhere stands once."""
    rows: list[tuple[str, Report]] = []
    for report, name in zip(reports, names, strict=True):
        for row in report[key]:
            known = any((other["title"], other["measures"]) == (row["title"], row["measures"]) for _, other in rows)
            if not (known and row["kind"] == "baseline"):
                rows.append((name, row))
    by_length = sorted((row["measures"] for _, row in rows), key=len, reverse=True)  # in the order of the fullest row
    measures = list(dict.fromkeys(measure for values in by_length for measure in values))
    best = {measure: _best(measure, [row["measures"] for _, row in rows if row["kind"] == "model"]) for measure in measures}
    cells = []
    for name, row in rows:
        shown = {measure: _shown(measure, value) for measure, value in row["measures"].items()}
        leads = {measure for measure, value in row["measures"].items() if row["kind"] == "model" and value == best[measure]}
        cells.append(row | {"name": name, "values": [(shown.get(measure, ""), measure in leads) for measure in measures]})
    return {"title": title, "note": note, "measures": measures, "rows": cells}


def _best(measure: str, rows: list[dict[str, float]]) -> float | None:
    """The best value where a measure has a better end and there is something to choose from."""
    values = [row[measure] for row in rows if measure in row]
    if len(values) < 2:
        return None
    return min(values) if measure.startswith(_FALLING) else max(values)


def _shown(measure: str, value: float) -> str:
    if measure.startswith(_PERCENT):
        return f"{100 * value:.1f} %"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3f}"


def _plot(reports: list[Report], names: list[str]) -> str | None:
    """FD and R@1 over the number of candidates as SVG; None where nothing was chosen."""
    curves = []
    for report, name in zip(reports, names, strict=True):
        rows = {row["id"]: row["measures"] for row in report["pictures"]}
        counts = [count for count in sorted(set(report["settings"]["best_of"])) if f"best of {count}" in rows]
        if len(counts) > 1:
            chosen = [rows[f"best of {count}"] for count in counts]
            curves.append((name or "model", report["extractor"]["distance"], counts, chosen, rows["real"]))
    if not curves:
        return None
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.2), layout="constrained")
    FigureCanvasSVG(figure)
    left, right = figure.subplots(1, 2)
    for name, distance, counts, rows, real in curves:
        line = left.plot(counts, [row[distance] for row in rows], "o-", label=name)[0]
        right.plot(counts, [100 * row["R@1"] for row in rows], "o-", color=line.get_color(), label=name)
        right.axhline(100 * real["R@1"], linestyle=":", color=line.get_color(), label=f"real pictures ({name})")
        left.set_ylabel(distance)
    right.set_ylabel("R@1, %")
    ticks = sorted({count for _, _, counts, _, _ in curves for count in counts})
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.set_xticks(ticks, map(str, ticks))
        axes.set_xlabel("candidates per caption")
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    drawn = io.StringIO()
    figure.savefig(drawn, format="svg", metadata={"Date": None})
    return drawn.getvalue()[drawn.getvalue().index("<svg") :]


def _columns(reports: list[Report], names: list[str]) -> list[tuple[str, int, str]]:
    """(heading, report, set of images) of what stands beside each other for every example."""
    columns = []
    for i, (report, name) in enumerate(zip(reports, names, strict=True)):
        drawn = [row["id"] for row in report["pictures"] if row["kind"] == "model"]
        ends = [drawn[0], drawn[-1]] if len(drawn) > 1 else drawn
        titles = ["drawn" if which == "best of 1" else which for which in ends]
        columns += [(f"{name}: {title}" if name else title, i, which) for title, which in zip(titles, ends, strict=True)]
    there = {row["id"] for row in reports[0]["pictures"]}
    shown = (("nearest caption", "nearest"), ("tokenizer", "reconstruction"), ("real", "real"))
    return [*columns, *((heading, 0, which) for heading, which in shown if which in there)]


def _examples(reports: list[Report], folders: list[Path], names: list[str]) -> list[dict[str, Any]]:
    """For each example of the first report its caption, images and written captions; of the others where they have it."""
    remedy = "evaluate again with the same --output, finished parts are kept"
    arrays = [read_arrays(folder / "examples.npz", remedy) for folder in folders]
    places = [{entry["key"] + entry["caption"]: i for i, entry in enumerate(report["examples"])} for report in reports]
    examples = []
    for entry in reports[0]["examples"]:
        key = entry["key"] + entry["caption"]
        cells = []
        for _, i, which in _columns(reports, names):
            at = places[i].get(key)
            cells.append(None if at is None else _data_uri(arrays[i][f"pictures/{which}"][at]))
        written = []
        for i, report in enumerate(reports):
            if key in places[i]:
                other = report["examples"][places[i][key]]
                written.append((names[i], other["written"], other.get("score")))
        examples.append({"caption": entry["caption"], "pictures": cells, "written": written})
    return examples


def _data_uri(image: np.ndarray) -> str:
    """An image uint8 [H, W, 3] as the address of its own PNG file."""
    content = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1]
    return "data:image/png;base64," + base64.b64encode(content.tobytes()).decode()
