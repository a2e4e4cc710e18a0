"""What passes between front and agent: in order, not too much ahead, and never silently."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from troupe_learner import joined_stream
from troupe_learner.channel import ChannelClosed
from troupe_learner.joined_stream import Outbox, Silence, heard


async def taken(outbox: Outbox[int], count: int) -> list[int]:
    messages = outbox.messages()
    return [await anext(messages) for _ in range(count)]


async def test_words_and_pieces_arrive_in_the_order_in_which_they_were_sent() -> None:
    outbox: Outbox[int] = Outbox()
    await outbox.ship(1)
    outbox.say(2)
    await outbox.ship(3)
    outbox.close()
    assert [each async for each in outbox.messages()] == [1, 2, 3]


async def test_a_sender_of_pieces_waits_for_the_receiver_and_words_never_do() -> None:
    outbox: Outbox[int] = Outbox()

    async def ship() -> None:
        for number in range(100):
            await outbox.ship(number)

    shipping = asyncio.create_task(ship())
    for _ in range(200):
        await asyncio.sleep(0)
    assert not shipping.done()
    outbox.say(-1)
    found = await taken(outbox, 101)
    assert found.index(-1) < 20, "what waits is bounded"
    assert [each for each in found if each >= 0] == list(range(100))
    await shipping


async def test_the_other_ends_silence_is_told_from_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joined_stream, "SILENCE_SECONDS", 0.2)

    async def ends() -> AsyncIterator[int]:
        yield 1

    async def falls_silent() -> AsyncIterator[int]:
        yield 1
        await asyncio.Event().wait()

    assert [each async for each in heard(ends())] == [1]
    with pytest.raises(Silence, match=r"0\.2 s"):
        [each async for each in heard(falls_silent())]


async def test_how_long_a_message_takes_to_be_dealt_with_is_not_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joined_stream, "SILENCE_SECONDS", 0.1)

    async def two() -> AsyncIterator[int]:
        yield 1
        yield 2

    found = []
    async for each in heard(two()):
        await asyncio.sleep(0.3)
        found.append(each)
    assert found == [1, 2]


async def test_who_waits_to_ship_a_piece_hears_of_the_end() -> None:
    outbox: Outbox[int] = Outbox()

    async def ship() -> None:
        while True:
            await outbox.ship(1)

    shipping = [asyncio.create_task(ship()) for _ in range(3)]
    await asyncio.sleep(0.05)
    outbox.close()
    for each in shipping:
        with pytest.raises(ChannelClosed):
            await asyncio.wait_for(each, 10)
