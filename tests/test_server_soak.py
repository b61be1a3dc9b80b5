"""Two hundred clients, many of which go away; perf/serving.py soak does the same for longer."""

import asyncio
import gc
from pathlib import Path

from server_load import soak
from serving import serving
from waiting import eventually

from alpha.server_models import Limits


def test_clients_that_come_and_go_leave_nothing_behind_and_get_their_own_answers(tmp_path: Path) -> None:
    with serving(tmp_path / "toy", limits=Limits(16, 128, threads=1), block=128) as server:
        [model] = server.models.loaded
        load = asyncio.run(soak(server.port, clients=200, seconds=6))
        assert load.wrong == []
        assert load.outcomes["200"] > 50
        assert load.outcomes["left"] > 50
        assert load.outcomes["429"] > 0
        eventually(lambda: model.engine.running == model.engine.waiting == 0)
        eventually(lambda: not model.is_busy)
        assert model.engine.cache_use == 0
        gc.collect()
        eventually(lambda: len(asyncio.all_tasks(server.loop)) < 10)
