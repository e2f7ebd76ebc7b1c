"""Numbers of tasks follow the size of the data."""

import pytest

from recsys_batch.night.task_sizing import count_user_tasks, count_users_per_task


def test_a_task_writes_about_as_much_whatever_a_list_weighs() -> None:
    assert count_users_per_task(200, 64) == 64 * 2**20 // (200 * 12 + 64 * 4)
    assert count_users_per_task(1, 4) == 50_000
    assert count_users_per_task(10_000, 1024) == 1_000


@pytest.mark.parametrize(
    ("n_users", "n_cores", "n_tasks"), [(0, 2, 2), (1, 2, 2), (50_000, 2, 2), (50_001, 2, 4), (1_000_000, 2, 40), (1_000_000, 64, 64)]
)
def test_tasks_come_in_whole_rounds_of_the_cores(n_users: int, n_cores: int, n_tasks: int) -> None:
    assert count_user_tasks(n_users, 25_000, n_cores) == n_tasks
    assert -(-n_users // n_tasks) <= 25_000
