"""From raw pairs to data that training opens.

Units are read, filtered, translated and tokenized one by one, each into a file of its own (`unit`), by a loop or by Ray
(`engines`); these files become shards (`finish`) and a report.
"""

from ppvilg.data.prepare.config import PrepareExperiment
from ppvilg.data.prepare.prepare import prepare

__all__ = ["PrepareExperiment", "prepare"]
