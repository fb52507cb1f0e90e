"""Every layout of a number of GPUs, and what they take as text to read."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

from ppvilg.config import ParallelConfig, ViLGExperiment
from ppvilg.plan.costs import Amounts, Cluster, communication, memory, peak, seconds, step_flops
from ppvilg.plan.shapes import Stage, parameter_counts, stages

_GB = 1e9


@dataclass(frozen=True)
class Plan:
    """A layout, which is its config's, and what it takes."""

    config: ViLGExperiment
    memory: Amounts
    """Bytes of the GPU that needs most."""
    seconds: Amounts
    """Of a step, on the slowest pipeline stage."""

    @classmethod
    def of(cls, config: ViLGExperiment, cluster: Cluster, parts: list[Stage]) -> "Plan":
        """What the config's own layout takes, whose pipeline has these stages."""
        most = max((memory(config, stage) for stage in parts), key=peak)
        return cls(config, most, max((seconds(config, stage, cluster) for stage in parts), key=lambda s: sum(s.values())))

    @property
    def speed(self) -> tuple[float, float]:
        """To sort by: of layouts that are equally fast the one that needs less memory comes first."""
        return sum(self.seconds.values()), peak(self.memory)

    def days(self, pairs: float) -> float:
        """To train on so many pairs."""
        return sum(self.seconds.values()) * pairs / self.config.train.batch_size / 86400


@dataclass(frozen=True)
class Search:
    """All layouts of a number of GPUs."""

    fitting: list[Plan]
    """Those that fit, the fastest first, each with the number of micro-batches that makes it fastest."""
    misfits: list[tuple[int, Plan]]
    """The others, by sharding stage and recompute: how many, and the one that needs the least memory."""
    refused: Counter[str]
    """Why the batch cannot be divided for some, and for how many."""


def search(config: ViLGExperiment, cluster: Cluster) -> Search:
    """Try every layout of the cluster's GPUs that the config allows; precision and offload are the config's.

    Raises `ValueError` where the machines are not all full.
    """
    if cluster.gpus > cluster.per_machine and cluster.gpus % cluster.per_machine:
        raise ValueError(f"--gpus: {cluster.gpus} is not a multiple of --per-machine {cluster.per_machine}")
    fitting, misfits, refused, pipelines = [], {}, Counter(), {}
    for layout in layouts(config, cluster):
        of = replace(config, parallel=layout)
        counts = _divisors(max(1, config.train.batch_size // layout.data_world_size))
        divided = [replace(of, train=replace(of.train, gradient_accumulation_steps=count)) for count in counts]
        allowed = [one for one in divided if not any(one.conflicts())]
        if not allowed:
            key, value, expected = next(divided[0].conflicts())
            refused[f"{key}: {value!r} does not fit: {expected}"] += 1
            continue
        cut = layout.mp_degree, layout.pp_degree
        pipelines[cut] = pipelines.get(cut) or stages(of)
        plans = [Plan.of(one, cluster, pipelines[cut]) for one in allowed]
        if fits := [found for found in plans if peak(found.memory) <= cluster.memory]:
            fitting.append(min(fits, key=lambda found: found.speed))
        else:
            sort = layout.sharding_degree > 1, layout.sharding_stage, layout.recompute == "full"
            misfits.setdefault(sort, []).append(min(plans, key=lambda found: peak(found.memory)))
    groups = [(len(plans), min(plans, key=lambda found: peak(found.memory))) for _, plans in sorted(misfits.items())]
    return Search(sorted(fitting, key=lambda found: found.speed), groups, refused)


def layouts(config: ViLGExperiment, cluster: Cluster) -> Iterator[ParallelConfig]:
    """All that use every GPU, with mp and sharding within machines, and that the config's own check allows."""
    # A batch that every layout can divide: only the layout is to be checked.
    divisible = replace(config, train=replace(config.train, batch_size=cluster.gpus, gradient_accumulation_steps=1))
    machine = min(cluster.gpus, cluster.per_machine)
    for mp in _divisors(machine):
        for sharding in _divisors(machine // mp):
            for pp in _divisors(cluster.gpus // (mp * sharding)):
                sizes = {"dp_degree": cluster.gpus // (mp * sharding * pp), "sharding_degree": sharding, "mp_degree": mp}
                sizes |= {"pp_degree": pp, "sequence_parallel": config.parallel.sequence_parallel and mp > 1}
                for stage in (1, 2, 3):
                    for recompute in ("none", "full"):
                        layout = replace(config.parallel, **sizes, sharding_stage=stage, recompute=recompute)
                        if not any(replace(divisible, parallel=layout).conflicts()):
                            yield layout


def _divisors(number: int) -> list[int]:
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]


def report(config: ViLGExperiment, cluster: Cluster, pairs: float, top: int) -> str:
    """Everything about a config on a cluster: the model, the config's own layout if it is for so many GPUs, the `top` fastest
    layouts, and why others do not fit; times are also given for training on so many pairs."""
    counts = parameter_counts(config)
    directions = "both directions" if config.train.sequences_per_pair == 2 else "one direction"
    title = f"FLOPs of a step: {config.train.batch_size} pairs, {directions}, forward and backward"
    parts = [
        _section("Parameters", [*counts.items(), ("total", sum(counts.values()))], "{:,}"),
        _section(title, _with_total(step_flops(config)), "{:.3e}"),
    ]
    if config.parallel.world_size == cluster.gpus:
        parts += _own(config, cluster, pairs)
    else:
        parts.append(f"The config's own layout has {config.parallel.world_size} processes, not {cluster.gpus}.")
    found = search(config, cluster)
    return "\n\n".join([*parts, *_fitting(found, cluster, pairs, top), *_others(found), _assumed(config, cluster)])


def _own(config: ViLGExperiment, cluster: Cluster, pairs: float) -> list[str]:
    parallel, parts = config.parallel, stages(config)
    found = Plan.of(config, cluster, parts)
    how = f"sharding stage {parallel.sharding_stage}, recompute {parallel.recompute}, {parallel.precision}"
    how += ", offload" if parallel.offload else ""
    batch = f"micro-batches {config.train.gradient_accumulation_steps}, pairs in each {config.micro_batch}"
    needed, sent = peak(found.memory), max((communication(config, stage) for stage in parts), key=lambda s: sum(s.values()))
    fits = f"{'fits' if needed <= cluster.memory else 'does not fit'} in {cluster.memory / _GB:g} GB"
    flops, step = step_flops(config), sum(found.seconds.values())
    share = 100 * (sum(flops.values()) - flops["recompute"]) / (step * cluster.gpus * cluster.peak)
    return [
        f"The config's own layout: {_degrees(parallel)}, {how}; {batch}",
        _section(f"GB of the GPU that needs most: {fits}", [*_in_gb(found.memory), ("at most at once", needed / _GB)])
        + "\n  (in the backward pass all but `update`, after it `update` beside weights, gradients and optimizer)",
        _section("GB that one process passes to the others in a step", _in_gb(sent)),
        _section("Seconds of a step", _with_total(found.seconds))
        + f"\n  {config.train.batch_size / step:.4g} pairs/s, {found.days(pairs):.1f} days for {pairs:.4g} pairs"
        + f"\n  {share:.1f} % of the peak, counting the model's FLOPs only",
    ]


_COLUMNS = ["dp", "sharding", "stage", "mp", "pp", "recompute", "micro-batches", "pairs", "GB"]
_COLUMNS += ["s/step", "compute", "bubble", "messages", "days"]


def _fitting(found: Search, cluster: Cluster, pairs: float, top: int) -> list[str]:
    limit = f"layouts of {cluster.gpus} GPUs with {cluster.memory / _GB:g} GB"
    rows = [_COLUMNS, *(_row(one, pairs) for one in found.fitting[:top])]
    if not found.fitting:
        return [f"No {limit} fit."]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return ["\n  ".join([f"The fastest {len(rows) - 1} of {len(found.fitting)} {limit} that fit", *lines])]


def _row(found: Plan, pairs: float) -> list[str]:
    layout, step = found.config.parallel, sum(found.seconds.values())
    compute, bubble = found.seconds["compute"], found.seconds["bubble"]
    stage = layout.sharding_stage if layout.sharding_degree > 1 else "-"
    counts = found.config.train.gradient_accumulation_steps, found.config.micro_batch
    how = layout.dp_degree, layout.sharding_degree, stage, layout.mp_degree, layout.pp_degree, layout.recompute, *counts
    takes = peak(found.memory) / _GB, step, compute, bubble, step - compute - bubble
    return [*map(str, how), *(f"{number:#.4g}" for number in takes), f"{found.days(pairs):.1f}"]


def _others(found: Search) -> list[str]:
    lines = []
    for count, closest in found.misfits:
        parallel = closest.config.parallel
        stage = f"sharding stage {parallel.sharding_stage}" if parallel.sharding_degree > 1 else "no sharding"
        largest = ", ".join(f"{name} {size:.3g}" for name, size in sorted(_in_gb(closest.memory), key=lambda p: -p[1])[:3])
        lines.append(
            f"  {stage}, recompute {parallel.recompute}: {count}, which need at least {peak(closest.memory) / _GB:.3g} GB "
            f"({_degrees(parallel)}: {largest})"
        )
    lines += [f"  {why}: {count}" for why, count in found.refused.items()]
    return ["\n".join(["How many others are left out, and why", *lines])] if lines else []


def _assumed(config: ViLGExperiment, cluster: Cluster) -> str:
    flops = f"{cluster.utilization:g} of {cluster.peak / 1e12:g} TFLOPS in {config.parallel.precision}"
    inside, across = cluster.inside / _GB, cluster.across / _GB
    return f"""Assumed
  A GPU computes at {flops}, in every layout alike.
  Messages go at {inside:g} GB/s within machines of {cluster.per_machine} GPUs, {across:g} GB/s for each GPU between machines.
  None of these rates was measured with this code: give those of your machines (--mfu, --bandwidth-inside, ...).
  Memory adds up what is there at different moments of a backward, so it is rather too much; CUDA's own is not in it.
  What an offloaded optimizer takes on the CPU is in neither memory nor seconds. GB are 10^9 bytes."""


def _degrees(parallel: ParallelConfig) -> str:
    return " x ".join(f"{name} {getattr(parallel, f'{name}_degree')}" for name in ("dp", "sharding", "mp", "pp"))


def _in_gb(found: Amounts) -> list[tuple[str, float]]:
    return [(name, size / _GB) for name, size in found.items()]


def _with_total(found: Amounts) -> list[tuple[str, float]]:
    return [*found.items(), ("total", sum(found.values()))]


def _section(title: str, rows: list[tuple[str, float]], form: str = "{:.3g}") -> str:
    """Names at the left, values at the right; what is nothing is left out."""
    shown = {name: form.format(value) for name, value in rows if value}
    if not shown:
        return f"{title}: none"
    width, end = max(map(len, shown)), max(map(len, shown.values()))
    return "\n".join([title, *(f"  {name:{width}}  {value:>{end}}" for name, value in shown.items())])
