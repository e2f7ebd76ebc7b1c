import asyncio
import threading

from recsys_batch.online.oip.offload import run_by_size


def test_a_long_conversion_leaves_the_loop_to_others_and_a_short_one_is_made_at_once() -> None:
    async def convert() -> tuple[int, int]:
        may_end = threading.Event()

        def long() -> int:
            assert may_end.wait(10)
            return threading.get_ident()

        conversion = asyncio.create_task(run_by_size(10**7, long))
        await asyncio.sleep(0)
        may_end.set()  # which the loop would not reach
        return await conversion, await run_by_size(10, threading.get_ident)

    long, short = asyncio.run(convert())
    assert long != threading.get_ident() == short
