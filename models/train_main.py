"""Training as a process, so that a launcher can start several of it, on one host or many.

    torchrun --nproc-per-node 4 -m models.train_main --use-case usecases/support/usecase.yaml \
        --snapshot snapshot.json --home .leitstand --profile full --record record.json
    torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29500 -m models.train_main ...
    accelerate launch --num_processes 4 -m models.train_main ...

Every host needs the use case, the snapshot's files and the base model under the same paths. Rank 0 writes
the run below its ``--home``, and the `RunRecord` to ``--record``. Exit codes are those of the error tree.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from leitstand import usecase
from leitstand.errors import LeitstandError, NotFoundError
from leitstand.files import write_text
from leitstand.ports import ExperimentTracker
from leitstand.settings import apply_environment, load_settings
from leitstand.types import Snapshot
from models.training import train

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None, *, tracker: ExperimentTracker | None = None) -> int:
    """Runs `models.training.train` on command-line arguments; returns the exit code."""
    given = _parser().parse_args(arguments)
    settings = load_settings()
    apply_environment(settings)
    try:
        record = train(
            usecase.load(given.use_case),
            _snapshot(given.snapshot),
            profile=given.profile,
            home=given.home or settings.root,
            tracker=tracker or _tracker(),
            commit=given.commit,
            s3=settings.s3,
            seed=given.seed,
            warm_start=given.warm_start,
        )
    except LeitstandError as error:
        sys.stderr.write(f"Error: {error}\n")
        return error.exit_code
    if given.record is not None:
        write_text(given.record, record.model_dump_json(indent=1))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--use-case", type=Path, required=True, help="the use case's usecase.yaml")
    parser.add_argument("--snapshot", type=Path, required=True, help="JSON of a `Snapshot`")
    parser.add_argument("--home", type=Path, help="where runs are kept; default: LEITSTAND_HOME")
    parser.add_argument("--profile", help="training profile; default: the use case's")
    parser.add_argument("--seed", type=int, help="default: the use case's")
    parser.add_argument("--warm-start", type=Path, help="folder of a trained classifier to start from")
    parser.add_argument("--commit", default="", help="commit of the code, for the record")
    parser.add_argument("--record", type=Path, help="write the RunRecord here")
    return parser


def _snapshot(path: Path) -> Snapshot:
    try:
        return Snapshot.model_validate_json(path.read_bytes())
    except FileNotFoundError as error:
        raise NotFoundError(f"No snapshot {path}", hint="write it with `leitstand data ingest`") from error


def _tracker() -> ExperimentTracker:
    from models.tracking.wandb import open_tracker  # noqa: PLC0415  seconds of import that tests need not pay

    return open_tracker(load_settings())


if __name__ == "__main__":
    sys.exit(main())
