"""The socket wrapper alone: the edge-triggered descriptor, cancellation, closing, messages cut short."""

import pytest
import trio
import trio.lowlevel
import zmq
from trio.testing import wait_all_tasks_blocked

from meshmoe.transport.zmq_socket import ZERO_COPY_BYTES_MIN, ZmqSocket
from tests.transport.support import trio_test


class Pair:
    """A DEALER at each end, so that both directions of the wrapper are exercised on one socket, too."""

    def __init__(self, hwm: int = 1000, immediate: bool = False) -> None:
        self.context = zmq.Context()
        self.raw_a, self.raw_b = self.context.socket(zmq.DEALER), self.context.socket(zmq.DEALER)
        for raw in (self.raw_a, self.raw_b):
            raw.set(zmq.SNDHWM, hwm)
            raw.set(zmq.RCVHWM, hwm)
            raw.set(zmq.LINGER, 0)
        self.raw_a.set(zmq.IMMEDIATE, immediate)
        self.raw_b.bind("tcp://127.0.0.1:*")
        self.raw_a.connect(self.raw_b.get(zmq.LAST_ENDPOINT))
        self.a, self.b = ZmqSocket(self.raw_a), ZmqSocket(self.raw_b)

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        self.a.close()
        self.b.close()
        self.context.term()


def contents(frames):
    return [frame.bytes for frame in frames]


@trio_test
async def test_reader_and_writer_on_one_socket_do_not_swallow_each_others_wakeups():
    """The classic failure: a send consumes the edge that announces a message, and the reader sleeps on."""
    async with Pair(hwm=3) as pair:
        count = 3000

        async def echo():
            for _ in range(count):
                await send_patiently(pair.b, contents(await pair.b.recv()))

        async def write():
            for number in range(count):
                await send_patiently(pair.a, [b"%d" % number])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(echo)
            nursery.start_soon(write)
            for number in range(count):
                assert contents(await pair.a.recv()) == [b"%d" % number]


async def send_patiently(socket: ZmqSocket, frames) -> None:
    """Send beside a task that receives on the same socket, which excludes ``send``: one waiting task a socket."""
    while not socket.send_nowait(frames):
        await trio.lowlevel.checkpoint()


@trio_test
async def test_a_second_waiting_task_is_refused_and_the_first_undisturbed():
    async with Pair() as pair, trio.open_nursery() as nursery:
        got = []

        async def read():
            got.append(contents(await pair.b.recv()))

        nursery.start_soon(read)
        await wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            await pair.b.recv()
        with pytest.raises(trio.BusyResourceError):
            await pair.b.send([b"x"])
        await pair.a.send([b"still heard"])
    assert got == [[b"still heard"]]


@trio_test
async def test_send_waits_for_room_and_is_woken():
    async with Pair(hwm=2) as pair:
        chunk = bytes(1 << 20)
        sent = 0
        while pair.a.send_nowait([chunk]):
            sent += 1
            await trio.sleep(0.002)
        assert not pair.a.send_nowait([chunk])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pair.a.send, [b"after all"])
            await wait_all_tasks_blocked()
            for _ in range(sent):
                assert len((await pair.b.recv())[0]) == 1 << 20
            assert contents(await pair.b.recv()) == [b"after all"]


@trio_test
async def test_send_before_there_is_a_connection():
    async with Pair(immediate=True) as pair, trio.open_nursery() as nursery:
        nursery.start_soon(pair.a.send, [b"first"])
        assert contents(await pair.b.recv()) == [b"first"]


@trio_test
async def test_close_wakes_the_waiting_task():
    async with Pair() as pair:

        async def read():
            with pytest.raises(trio.ClosedResourceError):
                await pair.b.recv()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await wait_all_tasks_blocked()
            pair.b.close()
        pair.b.close()
        for operation in (pair.b.recv, lambda: pair.b.send([b"x"])):
            with pytest.raises(trio.ClosedResourceError):
                await operation()
        with pytest.raises(trio.ClosedResourceError):
            pair.b.send_nowait([b"x"])


@trio_test
async def test_cancelling_and_closing_in_the_same_moment():
    async with Pair() as pair:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(pair.b.recv)
                await wait_all_tasks_blocked()
                scope.cancel()
                pair.b.close()
        assert pair.b.closed


@trio_test
async def test_frames_of_all_kinds_and_sizes():
    async with Pair() as pair:
        for size in (0, 1, 255, 256, ZERO_COPY_BYTES_MIN - 1, ZERO_COPY_BYTES_MIN, 1 << 21):
            data = bytes(range(256)) * (size // 256 + 1)
            frames = [data[:size], bytearray(data[:size]), memoryview(data)[:size]]
            await pair.a.send(frames)
            assert contents(await pair.b.recv()) == [data[:size]] * 3


@trio_test
async def test_buffers_sent_without_copying_outlive_their_owner():
    async with Pair() as pair:
        for number in range(20):
            await pair.a.send([bytes([number]) * (1 << 20)])
        for number in range(20):
            assert (await pair.b.recv())[0].bytes == bytes([number]) * (1 << 20)


class BreaksInMidMessage:
    """A raw socket whose connection dies after the first frame: EAGAIN on the second, as libzmq's lb_t does it."""

    def __init__(self, raw: zmq.Socket) -> None:
        self.raw = raw
        self.dropping = False
        self.broken = False
        self.frames_seen = 0

    def get(self, option):
        return self.raw.get(option)

    def close(self, linger=None):
        self.raw.close(linger)

    def send(self, frame, flags, copy=True):
        more = bool(flags & zmq.SNDMORE)
        if self.dropping:
            self.dropping = more
            return
        self.frames_seen += 1
        if self.frames_seen == 2 and not self.broken:
            self.broken = True
            self.dropping = more
            raise zmq.Again
        if self.broken:
            self.raw.send(frame, flags, copy=copy)


@pytest.mark.parametrize("frames", [[b"1", b"2"], [b"1", b"2", b"3"], [b"1", b"2", b"3", b"4"]])
@trio_test
async def test_a_message_cut_short_is_sent_again_whole(frames):
    async with Pair() as pair:
        fragile = ZmqSocket(BreaksInMidMessage(pair.raw_a))
        assert not fragile.send_nowait(frames)
        assert fragile.send_nowait(frames)
        assert fragile.send_nowait([b"next"])
        assert contents(await pair.b.recv()) == frames
        assert contents(await pair.b.recv()) == [b"next"]
