"""How the launched processes share out the work, and what they compute in."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from ppvilg.config.models import STRICT, Conflicts, Positive

Precision = Literal["fp32", "bf16", "fp16"]
DTYPES: dict[Precision, str] = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
Recompute = Literal["none", "full"]


@dataclass(frozen=True)
class DataParallelConfig:
    """How the launched processes share out the batch; their number is dp_degree · sharding_degree."""

    __pydantic_config__ = STRICT
    dp_degree: Positive = 1
    """Data parallel: groups of processes that each hold everything the others hold (across machines)."""
    sharding_degree: Positive = 1
    """Processes that see different samples, as with dp_degree, and share out the optimizer's state (within a machine)."""
    # What only a transformer's config can set.
    sharding_stage: ClassVar[int] = 1
    mp_degree: ClassVar[int] = 1
    pp_degree: ClassVar[int] = 1
    sequence_parallel: ClassVar[bool] = False
    recompute: ClassVar[Recompute] = "none"
    precision: ClassVar[Precision] = "fp32"
    offload: ClassVar[bool] = False

    @property
    def data_world_size(self) -> int:
        """Into how many parts a batch is divided."""
        return self.dp_degree * self.sharding_degree

    @property
    def world_size(self) -> int:
        """How many processes have to be launched."""
        return self.data_world_size * self.mp_degree * self.pp_degree

    @property
    def cuts_model(self) -> bool:
        """Whether no process holds all weights."""
        return self.mp_degree * self.pp_degree > 1 or self.sharding_stage == 3


@dataclass(frozen=True)
class ParallelConfig(DataParallelConfig):
    """How the launched processes share out the work; their number is dp_degree · sharding_degree · mp_degree · pp_degree."""

    __pydantic_config__ = STRICT
    sharding_stage: Annotated[int, Field(ge=1, le=3)] = 1
    """What is shared out over the sharding group. 1: the optimizer's state; 2: the gradients too; 3: the weights too."""
    mp_degree: Positive = 1
    """Tensor parallel: processes that share each layer's matrices (within a machine)."""
    pp_degree: Positive = 1
    """Pipeline stages that share out the layers."""
    sequence_parallel: bool = False
    """Share out what lies between the matrices, too: each tensor parallel process has some of a micro-batch's sequences, of
    which there is one for each direction of a pair (mp_degree > 1)."""
    recompute: Recompute = "none"
    """Whether the backward pass computes each layer again instead of keeping its activations."""
    precision: Precision = "fp32"
    """Of weights and activations on GPUs; the optimizer always works on float32 weights."""
    offload: bool = False
    """Keep the optimizer's state and the float32 weights in the CPU's memory (sharding_stage 3)."""

    def conflicts(self) -> Conflicts:
        """What Fleet cannot combine."""
        stage = self.sharding_stage
        if stage > 1 and self.sharding_degree == 1:
            yield "parallel.sharding_stage", stage, "expected 1 with sharding_degree: 1, which shares nothing out"
        if stage > 1 and self.pp_degree > 1:
            why = "Fleet shares out only the optimizer's state under a pipeline"
            yield "parallel.sharding_stage", stage, f"{why}: set sharding_stage: 1, or pp_degree: 1"
        if stage == 3 and self.mp_degree > 1:
            why = "Fleet's stage 3 clips gradients over the sharding group alone, which is wrong with tensor parallelism"
            yield "parallel.sharding_stage", stage, f"{why}: set sharding_stage: 2, or mp_degree: 1"
        if self.offload and stage < 3:
            why = "Fleet offloads what sharding_stage 3 shares out, and at stage 2 nothing but float16"
            how = "set sharding_stage: 3 and a sharding_degree of at least 2, or offload: false"
            yield "parallel.offload", True, f"{why}: {how}"
        if self.sequence_parallel and self.mp_degree == 1:
            yield "parallel.sequence_parallel", True, "expected false with mp_degree: 1, whose processes share no sequence"
