from __future__ import annotations

import itertools
import os
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drumline.rebuild import undo
from drumline.rebuild.manifests import escaped
from drumline.rebuild.names import collision_key, flat_name, is_safe, label_directory, spare_names
from tests.rebuild.archives import KICK, Archive


@pytest.mark.parametrize(
    ("path", "safe"),
    [
        (b"a", True),
        (b"a/b.wav", True),
        (b"..a/...b/.c", True),
        (b"\xff\n\x1b", True),
        (b"a" * 255, True),
        (b"", False),
        (b"/etc/passwd", False),
        (b"..", False),
        (b"a/../b", False),
        (b"a/..", False),
        (b"./a", False),
        (b"a//b", False),
        (b"a/", False),
        (b"a\0b", False),
        (b"a" * 256, False),
        (b"a/" * 2500 + b"a", False),
        (b"a\n", True),
    ],
)
def test_only_paths_that_lead_downwards_are_safe(path: bytes, safe: bool) -> None:
    assert is_safe(path) is safe


@pytest.mark.parametrize(
    ("label", "directory"),
    [
        ("Kick", b"Kick"),
        ("Große Trommel", "Große Trommel".encode()),
        ("_manifests", b"label_manifests"),
        ("Errors", b"label_Errors"),
        ("..", None),
        ("a/b", None),
        ("", None),
        ("  ", None),
        ("a\nb", None),
        ("x" * 201, None),
    ],
)
def test_labels_get_a_directory_that_clashes_with_no_report(label: str, directory: bytes | None) -> None:
    assert label_directory(label) == directory


@pytest.mark.parametrize(
    ("path", "name"),
    [
        (b"Vendor Pack/Kick 01.WAV", b"vendor-pack_kick-01.wav"),
        ("Café/Größe (1).flac".encode(), b"cafe_gro-e-1.flac"),
        ("音/音.wav".encode(), b"file.wav"),
        (b"-rf", b"rf"),
        (b".hidden", b"hidden"),
        (b"noext", b"noext"),
        (b"a/b\xff.wav", b"a_b.wav"),
        (b"a.tar.gz/B.b.aif", b"a-tar-gz_b-b.aif"),
    ],
)
def test_flat_names_are_plain(path: bytes, name: bytes) -> None:
    assert flat_name(path) == name


@given(st.binary(min_size=1, max_size=400))
def test_flat_names_are_short_ascii_and_safe(path: bytes) -> None:
    name = flat_name(path)
    assert name.isascii()
    assert len(name) <= 200
    assert is_safe(name)
    assert b"/" not in name


def test_long_flat_names_keep_their_end_and_extension() -> None:
    name = flat_name(b"x" * 300 + b"/the-name.wav")
    assert len(name) <= 200
    assert b"the-name~" in name
    assert name.endswith(b".wav")


@given(st.text(max_size=20))
def test_keys_ignore_case_and_normal_form(text: str) -> None:
    keys = {
        collision_key(unicodedata.normalize(form, text).encode("utf-8", "replace")) for form in ("NFC", "NFD")
    }
    assert len(keys) == 1


@given(st.binary(min_size=1, max_size=300).filter(is_safe), st.binary(max_size=20))
def test_spare_names_are_safe_different_and_stay_in_their_directory(target: bytes, relative: bytes) -> None:
    names = list(itertools.islice(spare_names(target, relative), 6))
    assert len({collision_key(name) for name in names}) == 6
    assert all(is_safe(name) or len(target) > 4000 for name in names)
    assert {name.rpartition(b"/")[0] for name in names} == {target.rpartition(b"/")[0]}


@given(st.binary(max_size=40))
def test_escaped_names_are_one_printable_line_and_can_be_read_back(name: bytes) -> None:
    text = escaped(name)
    assert not {0x0A, 0x0D, 0x09, 0x1B, 0} & set(text)
    assert text.decode("utf-8").encode() == text
    back, rest = b"", text
    while rest:
        if rest.startswith(b"\\\\"):
            back, rest = back + b"\\", rest[2:]
        elif rest.startswith(b"\\x"):
            back, rest = back + bytes([int(rest[2:4], 16)]), rest[4:]
        else:
            back, rest = back + rest[:1], rest[1:]
    assert back == name


def test_names_that_differ_by_case_or_normal_form_get_a_mark_by_their_own_path(archive: Archive) -> None:
    names = ["a/Kick.wav", "a/kick.wav", "a/KICK.wav", "é.wav", unicodedata.normalize("NFD", "é.wav")]
    for name in names:
        archive.add(name.encode(), KICK)
    archive.rebuild()
    tree = set(archive.tree())
    assert len(tree) == 5
    assert len({collision_key(path) for path in tree}) == 5
    assert {b"Kick/a/KICK.wav", "Kick/é.wav".encode()} & tree
    assert b"Kick/a/KICK.wav" in tree
    assert sum(b"~" in path for path in tree) == 3


def test_new_files_rename_no_others_but_the_first(archive: Archive) -> None:
    for name in (b"B.wav", b"b.wav"):
        archive.add(name)
    archive.rebuild()
    before = set(archive.tree())
    archive.add(b"b.WAV")
    archive.rebuild()
    assert before < set(archive.tree())


def test_a_directory_goes_before_a_file_of_the_same_name(archive: Archive) -> None:
    archive.add(b"loops/a.wav")
    archive.add(b"Loops.wav/b.wav")
    archive.add(b"loops.WAV")
    archive.add(b"LOOPS")
    archive.rebuild()
    keys = sorted(collision_key(path) for path in archive.tree())
    assert len(set(keys)) == 4
    folders = {key.rpartition(b"\0")[0] for key in keys}
    assert not folders & set(keys)


def test_a_marked_name_that_is_taken_gets_a_longer_mark(archive: Archive) -> None:
    taken = next(spare_names(b"x.wav", b"x.wav"))
    for name in (b"X.wav", b"x.wav", taken):
        archive.add(name)
    archive.rebuild()
    tree = set(archive.tree())
    assert len(tree) == 3
    assert b"Kick/" + taken in tree


def test_flat_layout_puts_all_files_of_a_label_in_one_directory(drums: Archive) -> None:
    drums.rebuild(layout="flat")
    assert set(drums.tree()) == {
        b"Kick/vendor-a_kicks_kick-01.wav",
        b"Kick/vendor-a_kicks_kick-02.wav",
        b"Snare/vendor-a_snare.wav",
        b"Hihat/vendor-b_hat.wav",
        b"misc/vendor-b_clap.wav",
    }


def test_flat_names_that_collide_are_told_apart(archive: Archive) -> None:
    for name in (b"a b.wav", b"a-b.wav", b"A B.wav", b"a/b.wav"):
        archive.add(name)
    archive.rebuild(layout="flat")
    assert len(archive.tree()) == 4


def test_names_that_are_no_utf8_come_through_unharmed(archive: Archive) -> None:
    names = [b"\xff\xfe/k\x80ck.wav", b"new\nline.wav", b"tab\t.wav", b"esc\x1b[31m.wav", b"-rf", b"*?.wav"]
    contents = {b"Kick/" + name: bytes([place]) * 9 for place, name in enumerate(names)}
    for name in names:
        archive.add(name, KICK, contents[b"Kick/" + name])
    for mode in ("copy", "hardlink"):
        archive.rebuild(copy_mode=mode)
        assert archive.tree() == contents
    manifest = (archive.out / "_manifests" / "Kick.txt").read_bytes()
    assert rb"Kick/\xff\xfe/k\x80ck.wav" in manifest.split(b"\n")
    assert rb"Kick/new\x0aline.wav" in manifest.split(b"\n")


def test_paths_of_any_depth_and_names_of_any_length_fit(archive: Archive) -> None:
    deep = b"d/" * 300 + b"k.wav"
    long = b"l" * 251 + b".wav"
    for path in (deep, long, long.upper()):
        archive.add(path)
    archive.rebuild()
    tree = set(archive.tree())
    assert {b"Kick/" + deep, b"Kick/" + long.upper()} < tree
    assert len(tree) == 3


@pytest.mark.parametrize("mode", ["copy", "hardlink"])
def test_paths_longer_than_a_system_call_takes_are_placed_and_undone(archive: Archive, mode: str) -> None:
    parts = [b"%02d" % number + b"d" * 98 for number in range(40)]
    descriptor = os.open(archive.root, os.O_RDONLY)
    for part in parts:
        os.mkdir(part, dir_fd=descriptor)
        inner = os.open(part, os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = inner
    for name in (b"kick.wav", b"Kick.wav"):
        file = os.open(name, os.O_WRONLY | os.O_CREAT, dir_fd=descriptor)
        status = os.fstat(file)
        os.close(file)
        archive.index(b"/".join([*parts, name]), size=0, mtime_ns=status.st_mtime_ns)
    os.close(descriptor)
    run = archive.run()
    assert archive.rebuild(run, copy_mode=mode).counts["made"] == 2
    assert archive.rebuild(run, copy_mode=mode).counts["already_there"] == 2
    assert undo(archive.out, drop_last_copies=True).complete
    assert not archive.out.exists()
