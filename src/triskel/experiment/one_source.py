"""Where several runs of one folder are played, all on the rows that the first of them read."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from triskel.config.job import Job
from triskel.config.sections import Judge
from triskel.data.rows import Table
from triskel.experiment.compare import HERE, Venue
from triskel.experiment.data_record import hold_source
from triskel.experiment.models import Loaded
from triskel.experiment.resources import LocalResources, prepare


def venue_in(folder: Path, loaded: Loaded | None = None) -> Venue[LocalResources]:
    """Return a venue whose runs refuse other rows than those in the same folder read.

    Args:
        folder: Which holds the runs, a folder each.
        loaded: What the runs share, where that is anything.
    """

    def prepared(
        job: Job,
        *words: Any,  # noqa: ANN401 - `prepare`'s
        judge: Judge = "test",
        **more: Any,  # noqa: ANN401 - as above
    ) -> LocalResources:
        def seen(table: Table) -> None:
            hold_source(folder, job, table, judge)

        return prepare(job, *words, judge=judge, loaded=loaded, seen=seen, **more)

    return replace(HERE, prepare=prepared)
