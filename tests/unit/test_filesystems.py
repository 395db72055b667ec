"""Which file system a path lies on, from the text that the kernel gives."""

from __future__ import annotations

from pathlib import Path

import pytest

from fourminutes.filesystems import Mount, file_system, maps_safely, mount_of

MOUNTINFO = """\
27 1 254:0 / / rw,relatime - ext4 /dev/vda rw
30 27 0:25 / /home rw,relatime shared:1 - autofs systemd-1 rw,fd=38
31 30 0:26 / /home rw,relatime shared:2 master:1 - nfs4 server:/home rw,vers=4.2
32 27 0:27 / /lustre/scratch rw - lustre 10.0.0.1@o2ib:/scratch rw,flock
33 27 0:28 / /lustre/scratch/a\\040b rw - tmpfs tmpfs rw
no line of that form
"""


@pytest.mark.parametrize(
    ("path", "point", "kind"),
    [
        ("/", "/", "ext4"),
        ("/homeless/x", "/", "ext4"),
        ("/home/me", "/home", "nfs4"),
        ("/lustre/scratch/data/train.tar", "/lustre/scratch", "lustre"),
        ("/lustre/scratch/a b/c", "/lustre/scratch/a b", "tmpfs"),
    ],
)
def test_the_longest_and_last_mount_point_above_a_path_holds_it(path, point, kind):
    assert mount_of(Path(path), MOUNTINFO) == Mount(Path(point), kind)


def test_where_nothing_is_known_the_kind_is_empty():
    assert mount_of(Path("/data"), "") == Mount(Path("/"), "")


def test_a_link_lies_where_it_leads(tmp_path: Path):
    (tmp_path / "processes").symlink_to("/proc/self")
    assert file_system(tmp_path / "processes" / "status") == Mount(Path("/proc"), "proc")
    assert file_system(tmp_path / "not" / "there").kind == file_system(tmp_path).kind
    assert maps_safely(tmp_path)
