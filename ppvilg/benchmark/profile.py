"""Where the time of a transformer's training step goes, operator by operator."""

from paddle import profiler

from ppvilg.benchmark.training import vilg_step
from ppvilg.config import ViLGExperiment


def print_profile(config: ViLGExperiment, steps: int) -> None:
    """Run some training steps on random pairs under paddle's profiler and print its table of operators."""
    step = vilg_step(config)
    step()  # allocates
    # Without a handler of its own the profiler writes traces into the working directory.
    with profiler.Profiler(targets=[profiler.ProfilerTarget.CPU], on_trace_ready=lambda _: None) as trace:
        for _ in range(steps):
            step()
            trace.step()
    trace.summary(profiler.SortedKeys.CPUTotal, op_detail=False, views=profiler.SummaryView.OperatorView)
