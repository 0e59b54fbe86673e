import errno
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calque import disk
from calque.errors import ConfigError, DataError


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    with pytest.raises(RuntimeError), disk.new_folder(tmp_path / "a") as part:
        (part / "file").write_text("half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with disk.new_folder(tmp_path / "a") as part:
        (part / "file").write_text("whole")
        assert not (tmp_path / "a").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_nothing_that_exists_is_overwritten(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/mine").write_text("keep")
    with pytest.raises(ConfigError, match="exists already"), disk.new_folder(tmp_path / "a"):
        pass
    assert (tmp_path / "a/mine").read_text() == "keep"


def test_a_full_disk_leaves_the_old_file_and_says_so(tmp_path, monkeypatch):
    disk.write_text(tmp_path / "a.txt", "old")

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match="disk full while writing"):
        disk.write_text(tmp_path / "a.txt", "new")
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "old"


def test_a_file_larger_than_the_disk_allows_is_said(tmp_path):
    with pytest.raises(DataError, match="larger than this disk"), disk.clear_disk_errors(tmp_path / "a"):
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))


def test_json_without_an_end_of_nesting_is_refused(tmp_path):
    (tmp_path / "a.json").write_text("[" * 100_000)
    with pytest.raises(DataError, match="nested deeper"):
        disk.read_json(tmp_path / "a.json")


def test_damaged_json_names_the_line(tmp_path):
    (tmp_path / "a.json").write_text('{"a": 1,\n"b": }')
    with pytest.raises(DataError, match=r"a\.json:2: not valid JSON"):
        disk.read_json(tmp_path / "a.json")
    (tmp_path / "a.json").write_bytes(b'{"a": "\xff"}')
    with pytest.raises(DataError, match="not valid UTF-8"):
        disk.read_json(tmp_path / "a.json")


@given(st.dictionaries(st.sampled_from("abcdef"), st.binary(max_size=20), min_size=1))
def test_a_fingerprint_depends_on_names_and_bytes_alone(tmp_path_factory, files):
    prints = []
    for order in (sorted(files), sorted(files, reverse=True)):
        folder = tmp_path_factory.mktemp("f")
        for name in order:
            (folder / name).write_bytes(files[name])
        (folder / "manifest.json").write_text(str(order))
        prints.append(disk.fingerprint(folder))
    assert prints[0] == prints[1]
    (folder / next(iter(files))).write_bytes(b"another content, longer than twenty bytes")
    assert disk.fingerprint(folder) != prints[0]


@pytest.fixture
def large(tmp_path, monkeypatch):
    """A file that counts as large; the calls that read it."""
    monkeypatch.setenv("CALQUE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(disk, "_LARGE", 10)
    monkeypatch.setattr(disk, "_SETTLED", -1)
    read, lanes = [], disk._lanes
    monkeypatch.setattr(disk, "_lanes", lambda path: read.append(path) or lanes(path))
    file = tmp_path / "weights"
    file.write_bytes(bytes(range(100)))
    return file, read


def test_a_large_file_is_summed_up_once_while_it_stays(large):
    file, read = large
    first = disk.checksum(file)
    assert disk.checksum(file) == first and len(read) == 1
    moved = file.with_name("moved")
    file.rename(moved)
    assert disk.checksum(moved) == first


def test_a_change_that_hides_its_time_is_noticed(large):
    file, _ = large
    before, state = disk.checksum(file), file.stat()
    with file.open("r+b") as stream:
        stream.write(b"\xff")
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert file.stat().st_mtime_ns == state.st_mtime_ns
    assert disk.checksum(file) != before


@pytest.mark.parametrize("note", ["{", "[]", "{}", '{"stamp": [1], "sum": "x"}'])
def test_a_damaged_note_of_a_sum_is_made_anew(large, note, tmp_path):
    file, read = large
    right = disk.checksum(file)
    (kept,) = (tmp_path / "cache/checksums").iterdir()
    kept.write_text(note)
    assert disk.checksum(file) == right and len(read) == 2


def test_without_a_cache_the_file_is_read_every_time(large, monkeypatch, tmp_path):
    file, read = large
    (tmp_path / "no").write_text("a file, where the cache should be")
    monkeypatch.setenv("CALQUE_CACHE", str(tmp_path / "no"))
    assert disk.checksum(file) == disk.checksum(file) and len(read) == 2


def test_a_file_that_has_just_changed_is_not_noted(large, monkeypatch):
    file, read = large
    monkeypatch.setattr(disk, "_SETTLED", 10**12)
    assert disk.checksum(file) == disk.checksum(file) and len(read) == 2
