"""Files of a report: all of them as they were, or all of them new."""

import pytest

from spa_jax.evaluation.files import write_files
from tests.runs.full_disk import files_of_at_most


def test_files_are_replaced_and_nothing_else_stays(tmp_path):
    write_files(tmp_path / "report", {"a": b"1", "b": b"2"})
    write_files(tmp_path / "report", {"b": b"3"})
    assert {path.name: path.read_bytes() for path in (tmp_path / "report").iterdir()} == {"a": b"1", "b": b"3"}


def test_a_full_disk_leaves_every_file_of_before(tmp_path):
    write_files(tmp_path, {"report.md": b"old", "report.json": b"old"})
    with files_of_at_most(1000), pytest.raises(ValueError, match=r"directory='.*' cannot be written: .*too large"):
        write_files(tmp_path, {"report.md": b"new", "report.json": b"n" * 2000})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
        "report.md": b"old",
        "report.json": b"old",
    }
