"""The chain on disk: what is found when something was changed, removed, added, or cut off."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import orjson
import pytest

from governance.audit.chain import Chain, event
from governance.audit.reading import Reader
from governance.audit.signing import Signer, open_signer
from governance.audit.verify_standalone import frame, main, segments
from tests.audit_for_tests import entry, only_chain, verify, write_trail


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Records 2 to 31 are inferences in several segments; 1 and 32 are `opened` and `closed`."""
    folder = tmp_path_factory.mktemp("trail")
    write_trail(folder, (entry(n) for n in range(30)), segment_bytes=8000)
    return folder


@pytest.fixture
def trail(written: Path, tmp_path: Path) -> Path:
    return shutil.copytree(written, tmp_path / "trail")


def lines_of(file: Path) -> list[bytes]:
    return file.read_bytes().splitlines(keepends=True)


def place_of(trail: Path, sequence: int) -> tuple[Path, int]:
    """The segment of a record, and its index there."""
    file = [file for file in segments(only_chain(trail)) if int(file.stem) <= sequence][-1]
    return file, sequence - int(file.stem)


def test_an_untouched_trail_holds(trail: Path) -> None:
    result = verify(trail)
    assert result.all_problems == [] and result.records == 32
    (chain,) = result.chains
    assert (chain.first, chain.last, chain.signed, chain.notes) == (1, 32, 32, [])
    assert len(segments(only_chain(trail))) > 3


def flip(lines: list[bytes], index: int) -> list[bytes]:
    line = bytearray(lines[index])
    line[200] ^= 1
    return [*lines[:index], bytes(line), *lines[index + 1 :]]


DAMAGES: dict[str, Callable[[list[bytes], int], list[bytes]]] = {
    "one flipped bit": flip,
    "deleted": lambda lines, index: lines[:index] + lines[index + 1 :],
    "repeated": lambda lines, index: [*lines[:index], lines[index - 1], *lines[index:]],
    "reordered": lambda lines, index: [*lines[:index], *reversed(lines[index : index + 2]), *lines[index + 2 :]],
    "inserted": lambda lines, index: [
        *lines[:index], frame(orjson.loads(lines[index])["previous"].encode(), orjson.loads(lines[index])["sequence"],
            event("forged"))[0], *lines[index:],
    ],  # an inserted record takes its place properly; the one behind it gives it away
    "cut short": lambda lines, index: [*lines[:index], lines[index][:100]],
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_first_bad_record_is_named(trail: Path, damage: str) -> None:
    file, index = place_of(trail, 16)
    lines = lines_of(file)
    file.write_bytes(b"".join(DAMAGES[damage](lines, index)))
    (problem,) = verify(trail).all_problems
    assert problem.sequence == (17 if damage == "inserted" else 16)
    assert (problem.chain, problem.file) == (only_chain(trail).name, str(file.relative_to(trail)))
    good = lines_of(file)[: problem.sequence - int(file.stem)]
    assert problem.offset == sum(map(len, good))


def test_a_removed_segment_is_named_by_its_first_record(trail: Path) -> None:
    files = segments(only_chain(trail))
    for removed in (files[0], files[1], files[-1]):
        content = removed.read_bytes()
        removed.unlink()
        (problem,) = verify(trail).all_problems
        assert problem.sequence == int(removed.stem) and "missing" in problem.what
        removed.write_bytes(content)
    assert verify(trail).all_problems == []


def test_records_cut_off_at_the_end_are_missed_by_the_signed_head(trail: Path) -> None:
    file = segments(only_chain(trail))[-1]
    lines = lines_of(file)
    file.write_bytes(b"".join(lines[:-1]))
    (problem,) = verify(trail).all_problems
    assert problem.sequence == 32 and "missing at the end" in problem.what


def test_a_removed_chain_is_missed(trail: Path) -> None:
    name = only_chain(trail).name
    shutil.rmtree(only_chain(trail))
    (problem,) = verify(trail).all_problems
    assert problem.chain == name and "gone" in problem.what


def test_a_forged_head_is_named(trail: Path) -> None:
    head = only_chain(trail) / "head.json"
    document = json.loads(head.read_bytes())
    document["body"]["sequence"] = 5
    head.write_bytes(json.dumps(document, sort_keys=True, separators=(",", ":")).encode() + b"\n")
    (problem,) = verify(trail).all_problems
    assert "signature" in problem.what and problem.file.endswith("head.json")


def test_a_head_of_another_signer_does_not_count(trail: Path, tmp_path: Path) -> None:
    stranger: Signer = open_signer(tmp_path / "stranger")
    chain = only_chain(trail)
    (chain / "head.json").write_bytes(stranger.statement("head", chain.name, 32, "0" * 64))
    (problem,) = verify(trail).all_problems
    assert "unknown key" in problem.what


def test_a_rewritten_history_is_given_away_by_an_anchor(written: Path, tmp_path: Path) -> None:
    """The attacker has every key and writes a trail that verifies by itself."""
    anchors = tmp_path / "anchors"
    name = only_chain(written).name
    (anchors / name).mkdir(parents=True)
    shutil.copyfile(only_chain(written) / "head.json", anchors / name / "32.json")
    forged = tmp_path / "forged"
    for secret in ("signing.key", "master.key"):
        forged.mkdir(exist_ok=True)
        shutil.copyfile(written / secret, forged / secret)
    (forged / "chains" / name).mkdir(parents=True)
    write_trail(forged, (entry(n, subject="somebody else") for n in range(30)), segment_bytes=8000)
    assert verify(forged).all_problems == []
    (problem,) = verify(forged, anchors).all_problems
    assert problem.sequence == 32 and "rewritten" in problem.what
    assert verify(written, anchors).all_problems == []


def test_the_verifier_runs_alone(trail: Path, tmp_path: Path) -> None:
    """With the standard library and cryptography, from a copy that knows nothing of this project."""
    import subprocess
    import sys

    from governance.audit import verify_standalone

    copy = shutil.copyfile(verify_standalone.__file__, tmp_path / "verify.py")
    command = [sys.executable, "-P", str(copy), str(trail)]
    good = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert (good.returncode, good.stdout.splitlines()[-1]) == (0, "holds: 32 records")
    file, _ = place_of(trail, 16)
    os.truncate(file, 10)
    bad = subprocess.run([*command, "--json"], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert bad.returncode == 1 and not json.loads(bad.stdout)["holds"]
    assert "leitstand" not in [line.split()[1] for line in copy.read_text().splitlines() if line.startswith("from ")]


def test_the_verifier_says_when_there_is_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 2
    assert "no chains" in capsys.readouterr().err


def test_what_a_crash_left_unfinished_is_cut_off_and_recorded(tmp_path: Path) -> None:
    write_trail(tmp_path, (entry(n) for n in range(3)), close=False)
    chain = only_chain(tmp_path)
    (file,) = segments(chain)
    with file.open("ab") as torn:
        torn.write(b'{"hash":"abc')
    (before,) = verify(tmp_path).chains
    assert before.problems == [] and "unfinished" in before.notes[0]
    write_trail(tmp_path, [entry(9)])
    assert verify(tmp_path).all_problems == []
    events = [line for line in Reader(tmp_path).lines() if line.kind != "inference"]
    assert [line.kind for line in events] == ["opened", "recovered", "opened", "closed"]
    assert events[1].details["bytes"] == 12
    assert [kept.read_bytes() for kept in (chain / "torn").iterdir()] == [b'{"hash":"abc']


def test_a_chain_that_was_tampered_with_is_left_alone(tmp_path: Path) -> None:
    write_trail(tmp_path, (entry(n) for n in range(3)))
    (file,) = segments(only_chain(tmp_path))
    content = bytearray(file.read_bytes())
    content[500] ^= 1
    file.write_bytes(content)
    write_trail(tmp_path, [entry(9)])
    assert len(list((tmp_path / "chains").iterdir())) == 2
    assert bytes(content) == file.read_bytes()
    assert [problem.file for problem in verify(tmp_path).all_problems] == [str(file.relative_to(tmp_path))]


def test_two_writers_have_a_chain_each_and_a_third_goes_on_with_the_first(tmp_path: Path) -> None:
    signer = open_signer(tmp_path)
    first, second = Chain.take(tmp_path, signer), Chain.take(tmp_path, signer)
    assert first.name != second.name
    first.append([event("test")])
    first.close(0.0)
    third = Chain.take(tmp_path, signer)
    assert third.name == first.name and third.sequence == first.sequence + 1
    third.close(1.0)
    second.close(1.0)
    result = verify(tmp_path)
    assert result.all_problems == [] and len(result.chains) == 2


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chain = Chain.take(tmp_path, open_signer(tmp_path))
    real = os.write
    room = [700]

    def full(handle: int, data: bytes) -> int:
        if not room[0]:
            raise OSError(28, "No space left on device")
        done = real(handle, data[: room[0]])
        room[0] -= done
        return done

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space"):
        chain.append([event("big", text="x" * 2000)])
    monkeypatch.undo()
    chain.append([event("small")])
    chain.close(0.0)
    assert verify(tmp_path).all_problems == []
    assert [line.kind for line in Reader(tmp_path).lines()] == ["opened", "small", "closed"]
