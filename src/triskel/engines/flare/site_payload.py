"""What one client of a job would send in a round, from its model and its own examples."""

from triskel.core.mode_spec import Sizes
from triskel.data.batches import lengths_of
from triskel.experiment.resources import LocalResources
from triskel.model.reparametrisation import cut
from triskel.numerics.tensors import select
from triskel.types import ClientId


def sizes_of(resources: LocalResources, client: ClientId) -> Sizes:
    """Return what the closed forms of modes need of a client."""
    job, share = resources.job, resources.tokens.share(client)
    body = resources.party(job.mode, client)
    initial = cut(body.initial, job.client(client).rank or job.adapter.rank)
    count, layout, train = body.blocks.count, body.layout, share.train

    def numbers(low: int, high: int, *, head: bool = False) -> int:
        names = layout.within(low, high, head=head)
        return sum(t.numel() for t in select(initial, names).values())

    blocks = [numbers(i, i + 1) for i in range(count)]
    public = resources.tokens.public(body)
    return Sizes(
        blocks=blocks,
        head=numbers(0, count, head=True) - sum(blocks),
        tensors=len(body.initial),
        texts=len(train),
        tokens=sum(lengths_of(train, ahead=body.blocks.ahead)),
        labels=len(train) if body.classes else sum(int(s.sum()) for s in train.scored),
        tests=len(share.test),
        tested=sum(lengths_of(share.test, ahead=body.blocks.ahead)),
        width=body.blocks.width,
        classes=body.classes,
        vocabulary=body.vocabulary,
        public=len(public) if body.classes else sum(int(s.sum()) for s in public.scored),
    )
