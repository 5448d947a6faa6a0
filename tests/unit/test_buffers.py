"""Buffers that are used again, and never while anybody can still see what is in them."""

import gc
import math
import threading

import numpy as np
import pytest
import torch

from hpc_stres.data.buffers import MOST_WAITING, Buffers

SHAPE = (4, 6, 5)
HOLDERS = {
    "the array": lambda array: array,
    "an element": lambda array: array[1],
    "a view of a view": lambda array: array[1:][::2][0, 1:],
    "another shape": lambda array: array.reshape(-1)[7:8],
    "other axes": lambda array: array.transpose(2, 0, 1),
    "its bytes": lambda array: array.view(np.uint8),
    "a memoryview": lambda array: memoryview(array[2]),
    "a buffer of a view": lambda array: np.frombuffer(memoryview(array[3])),
    "a tensor": torch.from_numpy,
    "a tensor of a view": lambda array: torch.from_numpy(array[2]),
    "a view of a tensor": lambda array: torch.from_numpy(array)[1].permute(1, 0),
    "an array of a tensor": lambda array: torch.from_numpy(array)[3].numpy()[1:],
    "DLPack": lambda array: np.from_dlpack(array[1]),
}


def address(array):
    return array.__array_interface__["data"][0]


@pytest.mark.parametrize("name", HOLDERS)
def test_whoever_holds_a_part_of_an_array_holds_its_memory(name):
    buffers = Buffers()
    array = buffers.take(SHAPE)
    first = address(array)
    holder = HOLDERS[name](array)
    del array
    others = [buffers.take(SHAPE) for _ in range(3)]
    assert first not in map(address, others)
    del holder
    assert address(buffers.take(SHAPE)) == first


def test_arrays_are_whole_and_of_their_shape():
    buffers = Buffers()
    for shape in [(3,), (2, 3), (0, 4), (5, 1, 2, 2), (24,), (25,), (12,)]:
        array = buffers.take(shape)
        assert array.shape == shape
        assert array.dtype == np.float32
        assert array.flags.carray
        array[:] = 1
    with pytest.raises((ValueError, MemoryError)):
        buffers.take((2**31, 2**31, 8))


def test_memory_that_fits_nobody_makes_room_for_what_comes_back():
    buffers = Buffers()
    small = [buffers.take((10,)) for _ in range(MOST_WAITING)]
    del small
    large = [buffers.take((1000,)) for _ in range(2)]
    first = {address(array) for array in large}
    del large
    again = [buffers.take((900,)) for _ in range(2)]
    assert {address(array) for array in again} == first
    assert len(buffers._waiting) <= MOST_WAITING


def test_memory_may_come_back_while_another_array_is_taken():
    """The collector runs where it likes: in the middle of `take` as well."""
    finished = threading.Event()

    class Forgotten:
        pass

    def many():
        buffers = Buffers()
        for _ in range(300):
            cycle = Forgotten()
            cycle.itself, cycle.array = cycle, buffers.take(SHAPE)
            del cycle
            buffers.take(SHAPE)
        finished.set()

    before = gc.get_threshold()
    gc.set_threshold(1, 1, 1)
    try:
        thread = threading.Thread(target=many, daemon=True)
        thread.start()
        assert finished.wait(60)
    finally:
        gc.set_threshold(*before)


def test_threads_never_get_the_same_memory():
    buffers, wrong = Buffers(), []

    def work(number):
        for turn in range(400):
            array = buffers.take((1 + turn % 3, 64))
            array[:] = number
            if not (array == number).all():
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert math.prod(buffers.take((3, 64)).shape) == 192
