"""What one client of a job would send in a round, from its model and its own examples."""

from triskel.bench import Bench
from triskel.cut import cut_of
from triskel.data.text import lengths_of
from triskel.job import Job
from triskel.policy.expected import Sizes
from triskel.tensors import select
from triskel.types import ClientId


def sizes_of(job: Job, bench: Bench, client: ClientId) -> Sizes:
    """Return what the closed forms of a job's mode need of a client."""
    body, share = bench.body(client), bench.share(client)
    numbers = sum(t.numel() for t in body.initial.values())
    tests, classes = len(share.test), body.classes
    if job.mode == "params":
        return Sizes(adapter=numbers, tests=tests, classes=classes)
    if job.mode == "logits":
        public = bench.public(body)
        rows = len(public) if classes else sum(int(s.sum()) for s in public.scored)
        return Sizes(public=rows, vocabulary=body.vocabulary, tests=tests, classes=classes)
    cut, train = cut_of(job, body, client), share.train
    scored = sum(int(s.sum()) for s in train.scored)
    return Sizes(
        adapter=sum(t.numel() for t in select(body.initial, cut.mine).values()),
        tokens=bench.work([client])[client],
        texts=len(train),
        labels=len(train) if classes else scored,
        width=body.blocks.width,
        pooled=cut.pooled,
        trains=cut.inside,
        tested=sum(lengths_of(share.test)),
        tests=tests,
        classes=classes,
    )
