"""Whether messages say the same, so that what was made of one is good for the other."""

from triskel.types import Message


def alike(one: Message, two: Message) -> bool:
    """Return whether messages say the same with the very same tensors."""
    if one is two:
        return True
    if (one.kind, one.topic) != (two.kind, two.topic) or one.sections.keys() != two.sections.keys():
        return False
    pairs = [(section, two.sections[name]) for name, section in one.sections.items()]
    return all(
        (a.kind, a.codec) == (b.kind, b.codec)
        and a.tensors.keys() == b.tensors.keys()
        and all(x is b.tensors[n] for n, x in a.tensors.items())
        and repr(a.facts) == repr(b.facts)  # 1, 1.0 and True are equal, and not alike
        for a, b in pairs
    ) and repr(one.facts) == repr(two.facts)
