"""What `ppvilg.parallel.plan` works out, as text to read."""

from dataclasses import asdict

from ppvilg.config import ViLGExperiment
from ppvilg.parallel.plan import (
    Cluster,
    Communication,
    Memory,
    Misfits,
    Plan,
    Search,
    Seconds,
    communication,
    parameters,
    plan,
    search,
    stages,
    step_flops,
)

_GB = 1e9


def report(config: ViLGExperiment, cluster: Cluster, pairs: float, top: int) -> str:
    """Everything about a config on a cluster: the model, the config's own layout if it is for so many GPUs, the `top` fastest
    layouts, and why others do not fit; times are also given for training on so many pairs."""
    parts = [_parameters(config), _flops(config)]
    processes = config.parallel.world_size
    if processes == cluster.gpus:
        parts.append(_own(plan(config, cluster), cluster, pairs))
    else:
        parts.append(f"The config's own layout is for {_counted(processes, 'process', 'es')}, not for {cluster.gpus}.")
    found = search(config, cluster)
    parts += [_fitting(found, cluster, pairs, top), _others(found, cluster), _assumptions(config, cluster)]
    return "\n\n".join(part for part in parts if part)


def _parameters(config: ViLGExperiment) -> str:
    counts = dict(parameters(config))
    rows = [*counts.items(), ("total", sum(counts.values()))]
    return _section("Parameters", [(kind, f"{count:,}") for kind, count in rows])


def _flops(config: ViLGExperiment) -> str:
    found = step_flops(config)
    rows = {
        "layers": found.layers,
        "head": found.head,
        "embeddings": found.embeddings,
        "model": found.model,
        f"recompute {config.parallel.recompute}": found.recompute,
        "done": found.done,
    }
    title = f"FLOPs of a step: {config.train.batch_size} pairs, both directions, forward and backward"
    return _section(title, [(name, f"{value:.3e}") for name, value in rows.items() if value])


def _own(found: Plan, cluster: Cluster, pairs: float) -> str:
    config = found.config
    parallel, train = config.parallel, config.train
    sharding = f", sharding stage {parallel.sharding_stage}" if parallel.sharding_degree > 1 else ""
    how = f"recompute {parallel.recompute}, {parallel.precision}{', offload' if parallel.offload else ''}"
    batch = f"{_counted(train.gradient_accumulation_steps, 'micro-batch', 'es')} of {_counted(config.micro_batch, 'pair')}"
    lines = [f"The config's own layout: {_axes(found)}{sharding}, {how}; {batch}"]
    fits = "fits" if found.memory.total <= cluster.memory else "does not fit"
    memory = _memory(found.memory)
    memory.append(("total", f"{found.memory.total / _GB:.3g} of {cluster.memory / _GB:g}: {fits}"))
    lines += ["", _section("GB of the GPU that needs most", memory)]

    number, sent = _busiest(config)
    title = "GB that one process passes to the others in a step"
    title += f" (pipeline stage {number} of 0 to {parallel.pp_degree - 1})" if parallel.pp_degree > 1 else ""
    if parallel.world_size > 1:
        lines += ["", _section(title, _amounts(sent, _GB))]

    step = found.seconds
    lines += ["", _section("Seconds of a step", [*_amounts(step, 1), ("total", f"{step.total:.3g}")])]
    share = step_flops(config).model / (step.total * cluster.gpus * cluster.peak)
    lines.append(f"  {train.batch_size / step.total:.4g} pairs/s, {step.days(config, pairs):.1f} days for {pairs:.4g} pairs")
    lines.append(f"  {100 * share:.1f} % of the peak, counting the model's FLOPs only")
    return "\n".join(lines)


def _memory(found: Memory) -> list[tuple[str, str]]:
    """By name; of what the backward has and what the update after it has only the larger counts."""
    rows = _amounts(found, _GB)
    return [
        (name, f"{amount} after the backward, beside weights, gradients and optimizer alone")
        if name == "update"
        else (name, amount)
        for name, amount in rows
    ]


def _busiest(config: ViLGExperiment) -> tuple[int, Communication]:
    """The pipeline stage whose processes send most, and what the one does that owns most."""
    found = [(stage.number, communication(config, stage, stage.held.busiest)) for stage in stages(config)]
    return max(found, key=lambda pair: sum(asdict(pair[1]).values()))


def _fitting(found: Search, cluster: Cluster, pairs: float, top: int) -> str:
    limit = f"{cluster.gpus} GPUs with {cluster.memory / _GB:g} GB"
    if not found.fitting:
        return f"No layout of {limit} fits."
    shown = found.fitting[:top]
    header = ["dp", "sharding", "stage", "mp", "pp", "recompute", "micro-batches", "pairs", "GB"]
    header += ["s/step", "compute", "bubble", "messages", "days"]
    rows = [header, *(_row(one, pairs) for one in shown)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
    lines = ["  " + "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join([f"The fastest {len(shown)} of {len(found.fitting)} layouts of {limit} that fit", *lines])


def _row(found: Plan, pairs: float) -> list[str]:
    parallel, step = found.config.parallel, found.seconds
    messages = step.total - step.compute - step.bubble
    return [
        str(parallel.dp_degree),
        str(parallel.sharding_degree),
        str(parallel.sharding_stage) if parallel.sharding_degree > 1 else "-",
        str(parallel.mp_degree),
        str(parallel.pp_degree),
        parallel.recompute,
        str(found.config.train.gradient_accumulation_steps),
        str(found.config.micro_batch),
        f"{found.memory.total / _GB:#.3g}",
        f"{step.total:#.4g}",
        f"{step.compute:#.3g}",
        f"{step.bubble:#.3g}",
        f"{messages:#.3g}",
        f"{step.days(found.config, pairs):.1f}",
    ]


def _others(found: Search, cluster: Cluster) -> str:
    lines = [_misfit(group) for group in found.misfits]
    lines += [f"  {_counted(count, 'layout')}: {why}" for why, count in found.refused.items()]
    return "\n".join([f"Why others are left out, with {cluster.memory / _GB:g} GB to a GPU", *lines]) if lines else ""


def _misfit(group: Misfits) -> str:
    closest = group.closest.memory
    parallel = group.closest.config.parallel
    sharding = f"sharding stage {parallel.sharding_stage}" if parallel.sharding_degree > 1 else "no sharding"
    largest = sorted(_amounts(closest, _GB), key=lambda pair: -float(pair[1]))[:3]
    return (
        f"  {_counted(group.count, 'layout')} with {sharding}, recompute {parallel.recompute}: need at least "
        f"{closest.total / _GB:.3g} GB ({_axes(group.closest)}): {', '.join(f'{name} {amount}' for name, amount in largest)}"
    )


def _axes(found: Plan) -> str:
    parallel = found.config.parallel
    return f"dp {parallel.dp_degree} x sharding {parallel.sharding_degree} x mp {parallel.mp_degree} x pp {parallel.pp_degree}"


def _amounts(found: Memory | Communication | Seconds, unit: float) -> list[tuple[str, str]]:
    """What is not nothing, by name."""
    return [(name.replace("_", " "), f"{value / unit:.3g}") for name, value in asdict(found).items() if value]


def _assumptions(config: ViLGExperiment, cluster: Cluster) -> str:
    lines = [
        f"A GPU computes at {cluster.utilization:g} of {cluster.peak / 1e12:g} TFLOPS in {config.parallel.precision}, in every "
        "layout alike.",
        f"Messages go at {cluster.inside / _GB:g} GB/s within a machine of {cluster.per_machine} GPUs and at "
        f"{cluster.across / _GB:g} GB/s for each GPU between machines; nothing overlaps.",
        "None of these rates was measured with this code: give those of your machines (--mfu, --bandwidth-inside, ...).",
        "Memory adds up what is there at different moments of a backward, so it is rather too much; CUDA's own is not in it.",
        "GB are 10^9 bytes.",
    ]
    if config.parallel.offload:
        lines.append("The update on the CPU and the way there and back are not in the seconds.")
    return "\n".join(["Assumed", *(f"  {line}" for line in lines)])


def _section(title: str, rows: list[tuple[str, str]]) -> str:
    """Names at the left; values whose first words end in one column."""
    name_width = max(len(name) for name, _ in rows)
    value_width = max(len(value.split(" ")[0]) for _, value in rows)
    lines = []
    for name, value in rows:
        first, space, rest = value.partition(" ")
        lines.append(f"  {name:{name_width}}  {first:>{value_width}}{space}{rest}")
    return "\n".join([title, *lines])


def _counted(count: int, thing: str, ending: str = "s") -> str:
    return f"{count} {thing}{'' if count == 1 else ending}"
