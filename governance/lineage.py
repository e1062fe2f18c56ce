"""Lineage of every step as OpenLineage run events: START when it begins, then COMPLETE, FAIL or ABORT.

    lineage = open_lineage(settings, commit=commit)
    with lineage.run("support.train", inputs=[snapshot_dataset(snapshot)]) as run:
        run.add_output(run_dataset(train(...)))

An error passes through unchanged after its FAIL event; that of a refused data set tells what was wrong
with the data. A run inside another becomes its child. Events follow version 2-0-2 of the specification,
https://openlineage.io/spec/2-0-2/OpenLineage.json.
"""

import contextlib
import contextvars
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Self

import structlog
from openlineage.client.event_v2 import InputDataset, Job, OutputDataset, Run, RunEvent, RunState
from openlineage.client.facet_v2 import (
    documentation_job,
    error_message_run,
    job_type_job,
    ownership_job,
    parent_run,
    source_code_location_job,
)
from openlineage.client.serde import Serde
from openlineage.client.uuid import generate_new_uuid

from governance.lineage_datasets import (
    Dataset,
    bento_dataset,
    endpoint_dataset,
    file_dataset,
    model_dataset,
    read_report,
    report_datasets,
    run_dataset,
    snapshot_dataset,
    source_dataset,
    source_datasets,
)
from governance.lineage_sinks import CompositeSink, FileSink, HttpSink
from leitstand import __version__
from leitstand.errors import ValidationFailed
from leitstand.ports import LineageSink
from leitstand.settings import Settings
from leitstand.types import utc_now

__all__ = [
    "Dataset", "Lineage", "LineageRun", "RunRef", "bento_dataset", "endpoint_dataset", "file_dataset", "model_dataset",
    "open_lineage", "run_dataset", "snapshot_dataset", "source_dataset", "source_datasets",
]  # fmt: skip

MAX_MESSAGE = 4_000

_enclosing: contextvars.ContextVar["LineageRun | None"] = contextvars.ContextVar("lineage_run", default=None)


@dataclass(frozen=True)
class RunRef:
    """Names a run, so that one in another process can be its child: ``run(..., parent=RunRef(...))``."""

    namespace: str
    job: str
    run_id: str
    root: "RunRef | None" = None


class LineageRun:
    """The run that is going on. What is added here is sent with the closing event."""

    def __init__(self, ref: RunRef, facets: Mapping[str, Any]) -> None:
        self.ref = ref
        self.run_facets: dict[str, Any] = dict(facets)
        self._inputs: dict[tuple[str, str], Dataset] = {}
        self._outputs: dict[tuple[str, str], Dataset] = {}

    @property
    def run_id(self) -> str:
        """The UUID of the run."""
        return self.ref.run_id

    def add_input(self, *datasets: Dataset) -> Self:
        """Adds what the run reads; a dataset of the same name is replaced, so facets can be added later."""
        self._inputs |= {(dataset.namespace, dataset.name): dataset for dataset in datasets}
        return self

    def add_output(self, *datasets: Dataset) -> Self:
        """Adds what the run writes; a dataset of the same name is replaced."""
        self._outputs |= {(dataset.namespace, dataset.name): dataset for dataset in datasets}
        return self

    def add_facet(self, name: str, facet: Any) -> Self:
        """Adds a run facet."""
        self.run_facets[name] = facet
        return self

    def inputs(self) -> list[InputDataset]:
        """The inputs as OpenLineage objects."""
        return [
            InputDataset(item.namespace, item.name, inputFacets=item.input_facets, facets=item.facets)
            for item in self._inputs.values()
        ]

    def outputs(self) -> list[OutputDataset]:
        """The outputs as OpenLineage objects."""
        return [
            OutputDataset(item.namespace, item.name, outputFacets=item.output_facets, facets=item.facets)
            for item in self._outputs.values()
        ]


class Lineage:
    """Emits the events of runs to a sink; never raises on its own account.

    Args:
        sink: Takes the events.
        namespace: Namespace of all jobs.
        producer: URI of the code that produces the events.
        commit: Git commit of that code; without one, the source-code facet is left out.
        source_url: URL of its repository, for that facet; the producer stands in for it.
        clock: Gives event times.
    """

    def __init__(
        self, sink: LineageSink, *, namespace: str = "leitstand", producer: str = "", commit: str = "",
        source_url: str = "", clock: Callable[[], datetime] = utc_now,
    ) -> None:  # fmt: skip
        self.sink = sink
        self.namespace = namespace
        self.producer = producer or source_url or f"pkg:generic/leitstand@{__version__}"
        self.commit = commit
        self.source_url = source_url
        self._clock = clock

    @contextlib.contextmanager
    def run(
        self, job: str, *, inputs: Sequence[Dataset] = (), outputs: Sequence[Dataset] = (),
        facets: Mapping[str, Any] | None = None, parent: RunRef | None = None, owner: str = "", description: str = "",
    ) -> Iterator[LineageRun]:  # fmt: skip
        """Sends START, runs the block, and sends COMPLETE, FAIL (an error) or ABORT (an interrupt).

        Args:
            job: Name of the job, stable from run to run, like ``support.train``.
            inputs: What the run reads.
            outputs: What it writes, as far as known; `LineageRun.add_output` adds the rest.
            facets: Further run facets.
            parent: The run that this one belongs to; by default, the enclosing one.
            owner: Team that owns the job.
            description: What the job does.
        """
        outer = _enclosing.get()
        parent = parent or (outer.ref if outer else None)
        root = (parent.root or parent) if parent else None
        run = LineageRun(RunRef(self.namespace, job, str(generate_new_uuid()), root), dict(facets or {}))
        run.add_input(*inputs).add_output(*outputs)
        if parent:
            run.add_facet("parent", _parent_facet(parent))
        job_facets = self._job_facets(owner, description)
        self._emit(RunState.START, run, job_facets)
        token = _enclosing.set(run)
        try:
            yield run
        except Exception as error:
            run.add_facet("errorMessage", _error_facet(error))
            report = read_report(error.report) if isinstance(error, ValidationFailed) else None
            if report:
                run.add_input(*report_datasets(report))
            self._emit(RunState.FAIL, run, job_facets)
            raise
        except BaseException:
            self._emit(RunState.ABORT, run, job_facets)
            raise
        else:
            self._emit(RunState.COMPLETE, run, job_facets)
        finally:
            _enclosing.reset(token)

    def close(self) -> None:
        """Flushes and closes the sink, within its time limit."""
        close = getattr(self.sink, "close", None)
        if close:
            close()

    def _job_facets(self, owner: str, description: str) -> dict[str, Any]:
        facets: dict[str, Any] = {
            "jobType": job_type_job.JobTypeJobFacet(processingType="BATCH", integration="LEITSTAND", jobType="TASK")
        }
        if self.commit:
            facets["sourceCodeLocation"] = source_code_location_job.SourceCodeLocationJobFacet(
                type="git", url=self.producer, repoUrl=self.source_url or None, version=self.commit
            )
        if owner:
            owners = [ownership_job.Owner(name=f"team:{owner}", type="MAINTAINER")]
            facets["ownership"] = ownership_job.OwnershipJobFacet(owners=owners)
        if description:
            facets["documentation"] = documentation_job.DocumentationJobFacet(description=description)
        return facets

    def _emit(self, state: RunState, run: LineageRun, job_facets: dict[str, Any]) -> None:
        try:
            event = RunEvent(
                eventTime=self._clock().isoformat(),
                eventType=state,
                run=Run(run.run_id, facets=run.run_facets),
                job=Job(self.namespace, run.ref.job, facets=job_facets),
                inputs=run.inputs(),
                outputs=run.outputs(),
                producer=self.producer,
            )
            self.sink.emit(_with_producer(Serde.to_dict(event), self.producer))
        except Exception as error:
            structlog.get_logger().warning(
                "a lineage event could not be sent",
                **{"event.action": "leitstand.lineage.lost", "leitstand": {"job": run.ref.job, "error": str(error)}},
            )


def open_lineage(settings: Settings, *, commit: str = "") -> Lineage:
    """Lineage to ``HOME/lineage/events.jsonl``, and over HTTP when ``lineage.url`` is set.

    Raises:
        ConfigurationError: ``lineage.url`` is no HTTP URL.
    """
    group = settings.lineage
    sinks: list[LineageSink] = [FileSink(settings.root / "lineage" / "events.jsonl")]
    if group.url:
        key = group.api_key.get_secret_value() if group.api_key else ""
        sinks.append(HttpSink(group.url, api_key=key, timeout_s=group.timeout_s))
    return Lineage(CompositeSink(sinks), namespace=group.namespace, commit=commit, source_url=group.source_url)


def _parent_facet(parent: RunRef) -> Any:
    root = parent.root or parent
    return parent_run.ParentRunFacet(
        run=parent_run.Run(runId=parent.run_id),
        job=parent_run.Job(namespace=parent.namespace, name=parent.job),
        root=parent_run.Root(
            run=parent_run.RootRun(runId=root.run_id), job=parent_run.RootJob(namespace=root.namespace, name=root.job)
        ),
    )


def _error_facet(error: Exception) -> Any:
    message = f"{type(error).__name__}: {error}"[:MAX_MESSAGE]
    return error_message_run.ErrorMessageRunFacet(message=message, programmingLanguage="python")


def _with_producer(value: Any, producer: str) -> Any:
    """The event with every facet's ``_producer`` set; the client would name itself there."""
    if isinstance(value, dict):
        return {key: producer if key == "_producer" else _with_producer(item, producer) for key, item in value.items()}
    return [_with_producer(item, producer) for item in value] if isinstance(value, list) else value
