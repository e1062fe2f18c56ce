"""Whatever is done to a closed trail shows, and the first record that it touched is named."""

import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from governance.audit.verify_standalone import segments
from tests.audit_for_tests import entry, only_chain, verify, write_trail

LAST = 14  # `opened`, twelve inferences, `closed`


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trail")
    write_trail(folder, (entry(n) for n in range(12)), segment_bytes=5000)
    return folder


class Copy:
    """A copy of the trail for one example."""

    def __init__(self, written: Path) -> None:
        self._scratch = tempfile.TemporaryDirectory()
        self.folder = shutil.copytree(written, Path(self._scratch.name) / "trail")
        self.files = segments(only_chain(self.folder))

    def __enter__(self) -> "Copy":
        return self

    def __exit__(self, *_: object) -> None:
        self._scratch.cleanup()

    def lines(self) -> list[tuple[Path, bytes]]:
        return [(file, line) for file in self.files for line in file.read_bytes().splitlines(keepends=True)]

    def write(self, lines: list[tuple[Path, bytes]]) -> None:
        for file in self.files:
            file.write_bytes(b"".join(line for place, line in lines if place == file))

    def first_bad(self) -> int:
        problems = verify(self.folder).all_problems
        assert len(problems) == 1, problems
        return problems[0].sequence


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_changed_byte_of_a_record_is_found(written: Path, data: st.DataObject) -> None:
    with Copy(written) as copy:
        file = data.draw(st.sampled_from(copy.files))
        content = bytearray(file.read_bytes())
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] ^= data.draw(st.integers(1, 255))
        touched = int(file.stem) + file.read_bytes()[:place].count(b"\n")
        file.write_bytes(content)
        assert copy.first_bad() == touched


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_changed_byte_of_a_signed_statement_is_found(written: Path, data: st.DataObject) -> None:
    with Copy(written) as copy:
        chain = only_chain(copy.folder)
        file = data.draw(st.sampled_from([chain / "head.json", chain / "heads.jsonl", copy.folder / "chains.jsonl"]))
        content = bytearray(file.read_bytes())
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] ^= data.draw(st.integers(1, 255))
        file.write_bytes(content)
        problems = verify(copy.folder).all_problems
        assert problems and all(problem.file == str(file.relative_to(copy.folder)) for problem in problems)


@settings(max_examples=60, deadline=None)
@given(first=st.integers(1, LAST), count=st.integers(1, 5))
def test_any_deletion_is_found(written: Path, first: int, count: int) -> None:
    with Copy(written) as copy:
        lines = copy.lines()
        copy.write(lines[: first - 1] + lines[first - 1 + count :])
        assert copy.first_bad() == first


@settings(max_examples=60, deadline=None)
@given(order=st.permutations(range(LAST)))
def test_any_reordering_is_found(written: Path, order: list[int]) -> None:
    with Copy(written) as copy:
        lines = copy.lines()
        copy.write([(place, lines[index][1]) for (place, _), index in zip(lines, order, strict=True)])
        moved = next((place for place, index in enumerate(order, start=1) if index != place - 1), None)
        if moved is None:
            assert verify(copy.folder).all_problems == []
        else:
            assert copy.first_bad() == moved


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_truncation_is_found(written: Path, data: st.DataObject) -> None:
    with Copy(written) as copy:
        whole = b"".join(line for _, line in copy.lines())
        keep = data.draw(st.integers(0, len(whole) - 1))
        left = keep
        for file in copy.files:
            content = file.read_bytes()
            file.write_bytes(content[: max(0, left)])
            left -= len(content)
        assert copy.first_bad() == whole[:keep].count(b"\n") + 1
