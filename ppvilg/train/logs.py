"""What a run says while it trains: a progress bar, metrics.jsonl, VisualDL and preview images."""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ppvilg.files import write_whole
from ppvilg.pictures import save_png


@dataclass
class Preview:
    """Images uint8 [H, W, 3] and texts of fixed samples, by name."""

    images: dict[str, np.ndarray] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)


class Logs:
    """The logs of one run from step `start` to step `steps`; use it as a context. Of several processes one alone writes."""

    def __init__(self, run: Path, start: int, steps: int, writes: bool = True):
        self._writes = writes
        if not writes:
            return
        from visualdl import LogWriter

        self._run = run
        _forget_from(run / "metrics.jsonl", start)
        self._metrics = (run / "metrics.jsonl").open("a", encoding="utf-8")
        self._writer = LogWriter(str(run / "visualdl"))
        # Off a terminal (a log file) the bar is written anew now and then instead of ten times a second.
        interval = 0.1 if sys.stderr.isatty() else 30
        self._bar = tqdm(total=steps, initial=start, unit="step", mininterval=interval, maxinterval=interval)
        self._shown: dict[str, str] = {}
        self._speed, self._waits = 0.0, 0.0

    def __enter__(self) -> "Logs":
        return self

    def __exit__(self, *error) -> None:
        if not self._writes:
            return
        self._bar.close()
        self._metrics.close()
        self._writer.close()

    def log_step(self, step: int, units: int, unit: str, seconds: float, waited: float) -> None:
        """One step is done, which took `seconds` for `units`, after the process had `waited` so long for its batch."""
        if not self._writes:
            return
        speed, waits = units / (seconds + waited), waited / (seconds + waited)
        first = not self._speed  # of which much goes into starting
        self._speed = speed if first else 0.95 * self._speed + 0.05 * speed
        self._waits = 0.0 if first else 0.95 * self._waits + 0.05 * waits
        self._shown |= {f"{unit}/s": f"{self._speed:.0f}", "data_wait": f"{self._waits:.1%}"}
        self._bar.set_postfix(self._shown, refresh=False)
        self._bar.update(1)
        if step % 20 == 0:
            self._writer.add_scalar(tag=f"speed/{unit}_per_second", step=step, value=self._speed)
            self._writer.add_scalar(tag="speed/data_wait", step=step, value=self._waits)

    def log_losses(self, step: int, values: dict[str, float], rate: float) -> None:
        """Losses of a training step."""
        if not self._writes:
            return
        self._shown |= {name: f"{value:.3f}" for name, value in values.items() if name in _ON_BAR}
        self._write(step, "train", values | {"learning_rate": rate})

    def log_validation(self, step: int, values: dict[str, float]) -> None:
        """Metrics on the validation split."""
        if not self._writes:
            return
        self._write(step, "validation", values)
        listed = "  ".join(f"{name} {value:.3f}" for name, value in values.items())
        tqdm.write(f"step {step} validation: {listed}", file=sys.stderr)

    def log_preview(self, step: int, preview: Preview) -> None:
        """Preview images (also as preview/*.png, newest only) and texts."""
        if not self._writes:
            return
        folder = self._run / "preview"
        folder.mkdir(exist_ok=True)
        for name, image in preview.images.items():
            self._writer.add_image(tag=f"preview/{name}", img=image, step=step)
            save_png(image, folder / f"{name}.png")
        for name, text in preview.texts.items():
            self._writer.add_text(tag=f"preview/{name}", text_string=text, step=step)
            (folder / f"{name}.txt").write_text(text, "utf-8")

    def _write(self, step: int, group: str, values: dict[str, float]) -> None:
        line = {"step": step, "group": group} | values
        self._metrics.write(json.dumps(line) + "\n")
        self._metrics.flush()
        for name, value in values.items():
            self._writer.add_scalar(tag=f"{group}/{name}", step=step, value=value)


_ON_BAR = ("loss", "txt2img", "img2txt", "psnr", "perplexity")


def _forget_from(metrics: Path, step: int) -> None:
    """Drop the lines after a step: a resumed run writes them again."""
    if metrics.is_file():
        lines = metrics.read_text("utf-8").splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
        write_whole(metrics, "".join(kept))
