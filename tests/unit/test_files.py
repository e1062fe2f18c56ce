"""Writes are whole or not at all."""

import os
from pathlib import Path

import pytest

from leitstand.files import atomic_dir, atomic_path, canonical_json, digest_file, digest_json, write_text


def test_a_failed_write_leaves_the_old_file_and_no_rest(tmp_path: Path) -> None:
    target = write_text(tmp_path / "file", "old")
    with pytest.raises(RuntimeError), atomic_path(target) as part:
        part.write_text("half")
        raise RuntimeError
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_failed_folder_leaves_the_old_one_and_no_rest(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    with atomic_dir(target) as part:
        (part / "a").write_text("1")
    with pytest.raises(RuntimeError), atomic_dir(target) as part:
        (part / "b").write_text("2")
        raise RuntimeError
    assert [path.name for path in target.iterdir()] == ["a"]
    assert list(tmp_path.iterdir()) == [target]


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    for name in ("a", "b"):
        with atomic_dir(tmp_path / "folder") as part:
            (part / name).write_text(name)
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["b"]
    assert list(tmp_path.iterdir()) == [tmp_path / "folder"]


def test_equal_values_have_equal_digests_whatever_their_order(tmp_path: Path) -> None:
    assert digest_json({"a": 1, "b": [2]}) == digest_json({"b": [2], "a": 1})
    assert digest_json({"a": 1}) != digest_json({"a": 1.5})
    with pytest.raises(ValueError, match="Out of range float"):
        canonical_json(float("nan"))
    file = write_text(tmp_path / "x", "")
    assert digest_file(file) == "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def test_what_a_killed_writer_left_behind_is_removed_a_day_later(tmp_path: Path) -> None:
    old, fresh, other = (tmp_path / name for name in (".data.a.part", ".data.b.part", ".data2.a.part"))
    for folder in (old, fresh, other):
        folder.mkdir()
        (folder / "half").write_text("x")
    for folder in (old, other):
        os.utime(folder, (0, 0))
    with atomic_dir(tmp_path / "data") as part:
        (part / "whole").write_text("y")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".data.b.part", ".data2.a.part", "data"]
