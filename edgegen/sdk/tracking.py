"""The registry's entries as runs in an MLflow store, for teams that look there (extra `track`)."""

from __future__ import annotations

import os
from collections.abc import Sequence

from edgegen.errors import ConfigError, UnsupportedError
from edgegen.records.registry import Entry

_EXPERIMENT = "edgegen"


def track_entries(entries: Sequence[Entry], store: str) -> int:
    """Write each entry that is not there yet as a run, with its figures, parents and place.

    Args:
        store: MLflow's tracking URI, such as `file:mlruns` or `http://…`; databases need the whole of MLflow.

    Returns:
        Runs that were written.

    Raises:
        UnsupportedError: MLflow is not installed, or lacks what this store needs.
        ConfigError: the store cannot be used.
    """
    try:
        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient
    except ModuleNotFoundError as error:
        raise UnsupportedError(
            "tracking needs mlflow, which is not installed", hint="pip install 'edgegen[track]'"
        ) from error
    if store.startswith("file:") or "://" not in store:
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # it asks for a database instead
    try:
        client = MlflowClient(tracking_uri=store)
        found = client.get_experiment_by_name(_EXPERIMENT)
        experiment = found.experiment_id if found else client.create_experiment(_EXPERIMENT)
        known = {
            run.data.tags.get("edgegen.digest")
            for run in client.search_runs([experiment], filter_string="", max_results=5000)
        }
        written = 0
        for entry in entries:
            if entry.digest in known:
                continue
            run = client.create_run(experiment, run_name=f"{entry.kind} {entry.name}", tags=_tags(entry))
            for name, value in entry.metrics.items():
                client.log_metric(run.info.run_id, name, value)
            client.set_terminated(run.info.run_id)
            written += 1
        return written
    except ModuleNotFoundError as error:
        raise UnsupportedError(
            f"this MLflow store needs {error.name}, which is not installed", hint=f"pip install {error.name}"
        ) from error
    except MlflowException as error:
        raise ConfigError(
            f"{store}: {str(error).splitlines()[0][:200]}", hint="Like file:mlruns; for a database: pip install mlflow."
        ) from error


def _tags(entry: Entry) -> dict[str, str]:
    said = {
        "edgegen.digest": entry.digest,
        "edgegen.kind": entry.kind,
        "edgegen.path": entry.path,
        "edgegen.parents": ",".join(entry.parents),
        "edgegen.lineage": entry.lineage,
        "edgegen.by": entry.by,
        "edgegen.note": entry.note,
    }
    return {key: value for key, value in said.items() if value}
