"""Raw pairs from the formats that data sets come in: one small reader each, as a section of a config names it.

A reader lists its `units` and reads each as a stream of records and faults, so that many processes can share a corpus of any
size and none holds more of it than a unit.
"""

from typing import Annotated

from pydantic import Discriminator

from ppvilg.data.readers.annotations import Annotations
from ppvilg.data.readers.base import Fault, Reader, Unit
from ppvilg.data.readers.img2dataset import Img2Dataset
from ppvilg.data.readers.parquet import Parquet
from ppvilg.data.readers.text import TextTable
from ppvilg.data.readers.webdataset import WebDataset

AnyReader = Annotated[TextTable | WebDataset | Parquet | Img2Dataset | Annotations, Discriminator("format")]
"""What a config can name."""

__all__ = ["Annotations", "AnyReader", "Fault", "Img2Dataset", "Parquet", "Reader", "TextTable", "Unit", "WebDataset"]
