import asyncio

from mmesh.serving.batching.coalesce import Coalescer


async def test_callers_of_one_key_share_a_ticket_until_there_is_an_outcome():
    coalescer = Coalescer()
    first, is_new = coalescer.join("key", 1.0)
    second, is_new_again = coalescer.join("key", 5.0)
    assert first is second
    assert (is_new, is_new_again) == (True, False)
    assert coalescer.join("other", 1.0)[0] is not first
    first.settle("done")
    assert coalescer.join("key", 1.0) != (first, False)


async def test_a_shared_ticket_lives_as_long_as_its_most_patient_caller():
    coalescer = Coalescer()
    ticket, _ = coalescer.join("key", 1.0)
    coalescer.join("key", 5.0)
    coalescer.join("key", 2.0)
    assert ticket.is_wanted(4.9)
    assert not ticket.is_wanted(5.0)


async def test_work_goes_on_while_one_caller_is_left_and_ends_with_the_last():
    coalescer = Coalescer()
    ticket, _ = coalescer.join("key", 1.0)
    coalescer.join("key", 1.0)
    coalescer.leave("key", ticket)
    assert ticket.is_wanted(0)
    coalescer.leave("key", ticket)
    assert ticket.outcome.cancelled()
    assert coalescer.join("key", 1.0)[1]


async def test_leaving_an_old_ticket_leaves_a_new_one_alone():
    coalescer = Coalescer()
    old, _ = coalescer.join("key", 1.0)
    old.fail(ValueError("broken"))
    new, is_new = coalescer.join("key", 1.0)
    assert is_new
    coalescer.leave("key", old)
    assert coalescer.join("key", 1.0) == (new, False)


async def test_a_waiting_caller_may_be_cancelled_without_harm_to_the_others():
    coalescer = Coalescer()
    ticket, _ = coalescer.join("key", 1.0)
    coalescer.join("key", 1.0)
    waits = [asyncio.create_task(asyncio.wait([ticket.outcome])) for _ in range(2)]
    await asyncio.sleep(0)
    waits[0].cancel()
    await asyncio.sleep(0)
    coalescer.leave("key", ticket)
    ticket.settle("done")
    await waits[1]
    assert ticket.outcome.result() == "done"
