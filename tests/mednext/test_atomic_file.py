"""A file is replaced whole or not at all."""

from __future__ import annotations

import os

import pytest

from mednext.atomic_file import replacing


def test_the_new_file_takes_the_place_of_the_old_one(tmp_path):
    path = tmp_path / "scan.nii.gz"
    path.write_text("old")
    with replacing(path) as part:
        assert part.name.endswith("scan.nii.gz")  # by the suffix a writer knows whether to compress
        part.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_after_an_error_the_old_file_is_there_and_nothing_else(tmp_path, error):
    path = tmp_path / "report.json"
    path.write_text("old")

    def write():
        with replacing(path) as part:
            part.write_text("half of the n")
            raise error

    with pytest.raises(error):
        write()
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(os.name != "posix", reason="POSIX permissions")
def test_others_may_read_it_as_the_umask_says(tmp_path):
    umask = os.umask(0o022)
    try:
        with replacing(tmp_path / "file") as part:
            part.write_text("")
    finally:
        os.umask(umask)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o644
