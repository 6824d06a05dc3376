"""What an archive lies on is told by the mount and by the disk."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from drumline.machine import mount_of
from drumline.settings import InferSettings
from drumline.storage import storage_of

linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")


def machine(root: Path, archive: Path, kind: str, *, disk: str = "sda", spins: str = "1") -> Path:
    """Write a machine that has the archive's device as the second partition of a disk."""
    device = os.stat(archive).st_dev
    block = root / "sys/devices" / disk
    partition = block / f"{disk}2"
    partition.mkdir(parents=True)
    (block / "queue").mkdir()
    (block / "queue/rotational").write_text(f"{spins}\n")
    numbers = root / "sys/dev/block"
    numbers.mkdir(parents=True)
    (numbers / f"{os.major(device)}:{os.minor(device)}").symlink_to(partition)
    (root / "proc/self").mkdir(parents=True)
    point = str(archive).replace(" ", r"\040")
    (root / "proc/self/mountinfo").write_text(
        f"20 1 8:1 / / rw - ext4 /dev/root rw\n30 20 8:2 / {point} rw,noatime shared:1 - {kind} source rw\n"
    )
    return root


@linux
@pytest.mark.parametrize("kind", ["nfs4", "cifs", "fuse", "fuse.sshfs", "9p"])
def test_a_network_file_system_is_known_by_its_name(tmp_path: Path, kind: str) -> None:
    archive = tmp_path / "My Samples"
    (archive / "below").mkdir(parents=True)
    root = machine(tmp_path / "machine", archive, kind)
    assert storage_of(bytes(archive / "below"), root) == "network"
    assert storage_of(bytes(tmp_path), root) == "hdd"


@linux
@pytest.mark.parametrize("kind", ["fuseblk", "fuse.mergerfs", "fuse.gocryptfs"])
def test_a_program_that_answers_from_a_disk_of_this_machine_is_no_network(tmp_path: Path, kind: str) -> None:
    assert storage_of(bytes(tmp_path), machine(tmp_path / "machine", tmp_path, kind)) != "network"


@linux
def test_of_mounts_at_one_point_the_last_counts(tmp_path: Path) -> None:
    root = machine(tmp_path / "machine", tmp_path, "autofs")
    with (root / "proc/self/mountinfo").open("a") as mounts:
        mounts.write(f"31 30 0:50 / {tmp_path} rw - nfs4 server:/samples rw\n")
    assert mount_of(bytes(tmp_path / "kicks"), root) == (str(tmp_path), "nfs4", "server:/samples")
    assert storage_of(bytes(tmp_path), root) == "network"


@linux
@pytest.mark.parametrize(
    ("disk", "spins", "storage"),
    [
        ("sda", "1", "hdd"),
        ("sda", "0", "ssd"),
        ("nvme0n1", "0", "ssd"),
        ("vda", "1", "ssd"),
        ("xvda", "1", "ssd"),
    ],
)
def test_a_disk_says_whether_it_spins_and_a_virtual_one_is_not_believed(
    tmp_path: Path, disk: str, spins: str, storage: str
) -> None:
    root = machine(tmp_path / "machine", tmp_path, "ext4", disk=disk, spins=spins)
    assert storage_of(bytes(tmp_path), root) == storage


def test_where_nothing_is_known_it_is_read_as_from_an_ssd(tmp_path: Path) -> None:
    assert storage_of(bytes(tmp_path), tmp_path) == "ssd"


@linux
def test_a_place_that_is_not_there_has_the_storage_of_what_is_above(tmp_path: Path) -> None:
    root = machine(tmp_path / "machine", tmp_path, "cifs")
    assert storage_of(bytes(tmp_path / "no/such/place"), root) == "network"
    assert storage_of(b"/no/such/place", root) == "ssd"


def test_on_a_network_more_workers_wait_at_once_unless_their_number_is_given() -> None:
    def workers(**settings: object) -> int:
        return InferSettings(archive=Path("a"), **settings).worker_count  # type: ignore[arg-type]

    assert workers(io="network") == 4 * workers(io="ssd") == 4 * workers(io="hdd")
    assert workers(io="network", workers=3) == 3


def test_settled_settings_stay_as_they_are_whatever_is_mounted_later(monkeypatch: pytest.MonkeyPatch) -> None:
    found = iter(["network", "ssd"])
    monkeypatch.setattr("drumline.settings.storage_of", lambda _archive: next(found))
    settings = InferSettings(archive=Path("a")).settled()
    assert settings.io == "network"
    assert settings.settled().worker_count == InferSettings(archive=Path("a"), io="network").worker_count
    assert next(found) == "ssd"
