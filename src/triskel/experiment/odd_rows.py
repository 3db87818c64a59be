"""What is odd about the rows that are dealt to clients, all of them together."""

from collections.abc import Iterator

from triskel.config.job import Job
from triskel.config.sections import Judge
from triskel.core.faults import Fault
from triskel.data.check import odd
from triskel.data.federate import Federation
from triskel.data.rows import join


def odd_rows(job: Job, federation: Federation, judge: Judge) -> Iterator[Fault]:
    """Return what is odd about what clients hold; nothing where no row is here.

    Args:
        job: The job.
        federation: Who holds what.
        judge: Which rows are held as test rows.
    """
    held = federation.clients
    train = join([one.train for one in held.values()])
    if not len(train):
        return
    test = join([one.test for one in held.values()])
    clients = {client: len(one.train) for client, one in held.items()}
    yield from odd(job, train, test, federation.public, clients, judge)
