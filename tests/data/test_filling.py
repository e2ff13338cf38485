"""A folder that several processes would fill at once."""

from __future__ import annotations

import os
import threading
import time

import pytest

from pgnas.data.filling import filled_by_one


def test_others_wait_and_find_what_the_first_brought(tmp_path):
    filled, downloads = tmp_path / "filled", []

    def fill():
        with filled_by_one(tmp_path):
            if not filled.exists():
                downloads.append(1)
                time.sleep(0.2)
                filled.write_text("all of it")

    threads = [threading.Thread(target=fill) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert downloads == [1]


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_keeps_nobody_waiting(tmp_path):
    tmp_path.chmod(0o555)
    with filled_by_one(tmp_path):
        assert not list(tmp_path.iterdir())
