"""Work out parameters, FLOPs, memory, messages and time of training in every layout of a number of GPUs; needs none.

python tools/plan.py -c configs/vilg_10b.yml --gpus 64 --memory 80

Measured, with real processes on a CPU in float32 (tests/plan): the parameters of each process; what weights, moments and moving
average take between two steps under Fleet's sharding stages 1, 2 and 3, tensor and pipeline parallelism; what a forward pass
keeps in one process. Arithmetic, by what Fleet's source says: bf16 (weights of 2 bytes, main gradients of 4), offload,
gradients and workspace within a step, messages. Seconds are only as good as the rates you give: the defaults are nominal ones
of A100 machines, which nobody has measured with this code.
"""

import argparse

from ppvilg.cli import run
from ppvilg.config import ViLGExperiment, load_config


def main() -> None:
    """Parse the arguments and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-c", "--config", required=True)
    parser.add_argument("-o", "--override", action="append", default=[], metavar="section.key=value", help="repeatable")
    parser.add_argument("--gpus", type=int, required=True, help="how many there are")
    parser.add_argument("--memory", type=float, default=80, metavar="GB", help="of one GPU (default: %(default)s)")
    parser.add_argument("--per-machine", type=int, default=8, metavar="GPUS", help="in one machine (default: %(default)s)")
    parser.add_argument(
        "--tflops", type=float, default=312, help="peak of one GPU (default: %(default)s, nominal for A100 in bf16)"
    )
    parser.add_argument(
        "--mfu",
        type=float,
        default=0.4,
        help="share of the peak reached while it computes, yours to give (default: %(default)s)",
    )
    parser.add_argument("--pairs", type=float, default=145e6, help="to train on (default: %(default).4g, the paper's)")
    parser.add_argument(
        "--bandwidth-inside",
        type=float,
        default=300,
        metavar="GB/S",
        help="of one GPU within a machine, each way, yours to give (default: %(default)s, nominal for A100's NVLink)",
    )
    parser.add_argument(
        "--bandwidth-across",
        type=float,
        default=25,
        metavar="GB/S",
        help="of one GPU between machines, each way, yours to give (default: %(default)s, nominal for 200 Gb/s InfiniBand)",
    )
    parser.add_argument("--top", type=int, default=8, help="how many layouts to show (default: %(default)s)")
    arguments = parser.parse_args()
    for name in ("gpus", "memory", "per_machine", "tflops", "mfu", "pairs", "bandwidth_inside", "bandwidth_across", "top"):
        if not getattr(arguments, name) > 0:
            raise ValueError(f"--{name.replace('_', '-')} is {getattr(arguments, name)}: give more than 0")
    if arguments.mfu > 1:
        raise ValueError(f"--mfu is {arguments.mfu}: give a share of the peak, at most 1")
    config = load_config(arguments.config, arguments.override, ViLGExperiment)

    from ppvilg.plan.costs import Cluster
    from ppvilg.plan.report import report

    cluster = Cluster(
        gpus=arguments.gpus,
        memory=arguments.memory * 1e9,
        per_machine=arguments.per_machine,
        peak=arguments.tflops * 1e12,
        utilization=arguments.mfu,
        inside=arguments.bandwidth_inside * 1e9,
        across=arguments.bandwidth_across * 1e9,
    )
    print(report(config, cluster, arguments.pairs, arguments.top))


if __name__ == "__main__":
    run(main)
