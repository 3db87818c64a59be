"""How a run computes: written into its folder before round 1, and taken up when it goes on.

`choices.json` has a row for each model: its `Choice`, its dtype, and the device it lies on. Beside
them stand, once, what decides which clients' texts run in one pass, and the number of threads.
"""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from triskel.config.sections import Model
from triskel.core.files import write_text
from triskel.core.registry import MODES
from triskel.core.threads import COUNT, RUN, users
from triskel.core.untrusted import json_in
from triskel.errors import CheckpointError, ModelError
from triskel.model import fast
from triskel.model.load import device_of
from triskel.model.shared import Choice, SharedModel
from triskel.training import evaluate, joining, loop

GROUPING = "grouping"
ANEW = "or delete it to choose anew (results may differ by rounding)"


def grouping(modes: Sequence[str]) -> dict[str, float]:
    """Return what decides which clients' texts run in one pass, in any of these modes."""
    return {
        "in_flight": loop.IN_FLIGHT,
        "padding": joining.TIGHT,
        "small": joining.SMALL,
        "most": joining.MOST,
        "side_by_side": fast.MAX_SIDE_BY_SIDE,
        "scored": evaluate.BATCH_TOKENS,
        **{name: value for mode in modes for name, value in MODES.spec(mode).grouping.items()},
    }


class ComputeRecord:
    """What the file of a run says.

    Args:
        file: The file; None keeps nothing.
        modes: What is played.

    Raises:
        CheckpointError: The file is damaged, or this version groups clients otherwise.
    """

    def __init__(self, file: Path | None, modes: Sequence[str]) -> None:
        self._file, self._grouping = file, grouping(modes)
        self._rows: dict[str, dict[str, Any]] = {}
        if file is None or not file.exists():
            return
        try:
            self._rows = {k: dict(row) for k, row in json_in(file).items()}
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise self._damaged(error) from error
        now = self._grouping
        begun = self._rows.get(GROUPING, now)  # runs of earlier versions wrote none
        if others := [name for name in now if begun.get(name) != now[name]]:
            raise CheckpointError(
                f"{file}: this run began with {GROUPING}.{others[0]} = {begun.get(others[0])}, and "
                f"this version has {now[others[0]]}, so other clients' texts would run in one "
                f"pass; go on with the version it began with, {ANEW}"
            )

    def settle(self, say: Callable[[str], None]) -> None:
        """Compute on as many threads as the run began with, unless a user says how many.

        Args:
            say: Told where it goes on with another number than is set, or than it began with.

        Raises:
            CheckpointError: The file is damaged.
        """
        now, begun = torch.get_num_threads(), self._rows.get(RUN, {}).get("threads")
        if begun is None or begun == now:
            return
        if users(os.environ):
            say(
                f"this run began on {begun} threads and goes on with {now}, as {COUNT} says: "
                "results may differ by rounding"
            )
            return
        try:
            torch.set_num_threads(begun)
        except (TypeError, RuntimeError) as error:
            raise self._damaged(error) from error
        say(f"this run goes on with {begun} threads, as it began, rather than {now}")

    def model(self, name: str, model: Model) -> Model:
        """Return how a model is loaded: dtype and device that are `auto` are those of the start.

        Raises:
            CheckpointError: The device is not here.
        """
        row = self._rows.get(name, {})
        auto = {key for key in ("dtype", "device") if getattr(model, key) == "auto"}
        begun = model.model_copy(update={key: row[key] for key in auto if key in row})
        try:
            device_of(begun)
        except ModelError as error:
            if begun.device == model.device:
                raise
            raise CheckpointError(
                f"{self._file}: this run began on {begun.device}, which cannot be used here; go "
                f"on where it is, {ANEW}"
            ) from error
        return begun

    def choice(self, name: str) -> Choice | None:
        """Return how a model computes; None where nothing was chosen.

        Raises:
            CheckpointError: Its row is damaged.
        """
        if name not in self._rows:
            return None
        row = {k: v for k, v in self._rows[name].items() if k not in {"dtype", "device"}}
        try:
            return Choice(**row)
        except TypeError as error:
            raise self._damaged(error) from error

    def keep(self, name: str, body: SharedModel, choice: Choice) -> None:
        """Write how a model computes."""
        if self._file is None:
            return
        where = {"dtype": str(body.dtype).removeprefix("torch."), "device": str(body.device)}
        self._rows[name] = {**asdict(choice), **where}
        self._rows[GROUPING] = self._grouping
        self._rows.setdefault(RUN, {"threads": torch.get_num_threads()})
        write_text(self._file, json.dumps(self._rows, indent=1))

    def _damaged(self, error: Exception) -> CheckpointError:
        return CheckpointError(
            f"{self._file} does not say how the run began to compute: {error}; put it back, {ANEW}"
        )
