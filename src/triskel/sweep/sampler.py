"""The next setting of a search that learns: by optuna's TPE, from what the settings before reached.

The study lives in memory only. It is told what the record of the sweep holds, and its random
numbers are a function of the job's seed and of how many settings there are: so a sweep that was
killed is asked again and answers the same. A setting without a figure counts as the worst.

Source: Bergstra et al., NeurIPS 2011; `optuna.samplers.TPESampler`.
"""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING

from triskel.config.ranges import Range
from triskel.config.read import setting_of
from triskel.config.space import Sampling
from triskel.errors import JobError
from triskel.numerics.rng import derive

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

SEEDS = 2**32
"""Seeds that the sampler takes."""
RANDOM = 10
"""Up to how many settings are drawn before any is learnt from; never more than half of them."""
Told = tuple[Mapping[str, object], float | None]
"""What a setting sets, and what it reached."""


def needed() -> None:
    """Refuse a search that learns where optuna is not installed.

    Raises:
        JobError: It is not.
    """
    if find_spec("optuna") is None:
        raise JobError(
            "--sampler tpe draws settings with another package: pip install 'triskel[search]', or "
            "draw them independently with --sampler random"
        )


def suggested(how: Sampling, told: Sequence[Told], figure: str) -> Mapping[str, str]:
    """Return values by key, as they are written, for the setting after some others.

    Args:
        how: What is drawn from.
        told: The settings so far.
        figure: `accuracy`, of which more is better, or `perplexity`, of which less is.
    """
    import optuna  # noqa: PLC0415 - optional
    from optuna.distributions import (  # noqa: PLC0415 - optional
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )
    from optuna.trial import TrialState, create_trial  # noqa: PLC0415 - optional

    def distribution(kind: Range | tuple[str, ...]) -> "BaseDistribution":
        if not isinstance(kind, Range):
            return CategoricalDistribution(kind)
        if kind.whole:
            return IntDistribution(int(kind.low), int(kind.high), log=kind.log)
        return FloatDistribution(kind.low, kind.high, log=kind.log)

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    ranges = how.ranges()
    space = {key: distribution(kind) for key, kind in ranges.items()}
    sampler = optuna.samplers.TPESampler(
        seed=derive(how.seed, "settings", len(told)) % SEEDS,
        n_startup_trials=min(RANDOM, how.samples // 2),
    )
    better = "minimize" if figure == "perplexity" else "maximize"
    study = optuna.create_study(sampler=sampler, direction=better)
    for values, reached in told:
        study.add_trial(
            create_trial(
                params={key: _known(key, kind, values[key]) for key, kind in ranges.items()},
                distributions=space,
                value=reached,
                state=TrialState.PRUNED if reached is None else TrialState.COMPLETE,
            )
        )
    drawn = study.ask(space).params
    return {
        key: kind.text(drawn[key]) if isinstance(kind, Range) else str(drawn[key])
        for key, kind in ranges.items()
    }


def _known(key: str, kind: Range | tuple[str, ...], value: object) -> object:
    """Return a value of a setting as the study knows it: of a list, how it is written there."""
    if isinstance(kind, Range):
        return value
    return next(text for text in kind if setting_of(f"{key}={text}")[1] == value)
