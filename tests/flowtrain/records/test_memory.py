"""What a process may take: the least that the machine and its control groups leave."""

from pathlib import Path

import pytest

from flowtrain.records.memory import available_memory

MACHINE = 8 << 30


def fake(root: Path, groups: str, files: dict[str, str]) -> Path:
    content = {
        "proc/meminfo": (
            f"MemTotal:  99 kB\nMemAvailable:    {MACHINE >> 10} kB\nHugePages_Total:       0\n"
        ),
        "proc/self/cgroup": groups,
        **files,
    }
    for name, text in content.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def group(folder: str, limit: str, used: int, inactive: int, version: int = 2) -> dict[str, str]:
    names = ("memory.max", "memory.current", "inactive_file")
    if version == 1:
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    return {
        f"{folder}/{names[0]}": f"{limit}\n",
        f"{folder}/{names[1]}": f"{used}\n",
        f"{folder}/memory.stat": f"anon 5\n{names[2]} {inactive}\n",
    }


def test_a_machine_without_limits(tmp_path: Path):
    assert available_memory(fake(tmp_path, "0::/\n", {})) == MACHINE
    assert (
        available_memory(fake(tmp_path, "0::/a\n", group("sys/fs/cgroup/a", "max", 5, 5)))
        == MACHINE
    )


def test_the_limit_of_a_group_counts_and_pages_of_files_are_free(tmp_path: Path):
    files = group("sys/fs/cgroup/a/b", "1000000", 700_000, 200_000)
    assert available_memory(fake(tmp_path, "0::/a/b\n", files)) == 500_000


def test_the_tightest_of_nested_groups_counts(tmp_path: Path):
    files = group("sys/fs/cgroup/a/b", "1000000", 0, 0) | group(
        "sys/fs/cgroup/a", "900000", 600_000, 0
    )
    assert available_memory(fake(tmp_path, "0::/a/b\n", files)) == 300_000


def test_groups_of_version_one(tmp_path: Path):
    files = group("sys/fs/cgroup/memory/a", "1000000", 700_000, 200_000, version=1)
    assert available_memory(fake(tmp_path, "5:cpu,memory:/a\n3:cpuset:/\n0::/\n", files)) == 500_000


def test_a_container_sees_its_own_group_as_the_outermost_one(tmp_path: Path):
    """Its path is told as the host knows it, which is not mounted in it."""
    files = group("sys/fs/cgroup/memory", "1000000", 700_000, 0, version=1)
    assert available_memory(fake(tmp_path, "5:memory:/docker/0123\n", files)) == 300_000


def test_more_used_than_allowed_is_nothing_left(tmp_path: Path):
    assert available_memory(fake(tmp_path, "0::/\n", group("sys/fs/cgroup", "10", 20, 0))) == 0


def test_this_machine():
    assert 1 << 20 < available_memory() < 1 << 50


def test_without_proc_it_is_the_whole_memory(tmp_path: Path):
    meminfo = Path("/proc/meminfo")
    if not meminfo.is_file():
        pytest.skip("no /proc to compare with")
    assert available_memory(tmp_path) >= available_memory()
