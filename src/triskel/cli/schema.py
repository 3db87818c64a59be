"""The command that prints what a file of Triskel holds, as a JSON schema."""

import json
from enum import StrEnum

from triskel.config.job import Job
from triskel.core import events, result_file, sweep_file
from triskel.core.console import echo


class What(StrEnum):
    """What a run folder holds."""

    RESULT = "result"
    EVENTS = "events"
    JOB = "job"
    SWEEP = "sweep"


def schema(what: What) -> None:
    """Print the JSON schema of result.json, sweep.json, a line of events.jsonl, or a job."""
    told = {
        What.RESULT: result_file.schema_of,
        What.EVENTS: events.schema_of,
        What.JOB: Job.model_json_schema,
        What.SWEEP: sweep_file.schema_of,
    }
    whole = {"$schema": "https://json-schema.org/draft/2020-12/schema", **told[what]()}
    echo(json.dumps(whole, indent=1))
