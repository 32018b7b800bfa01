"""Calls of every sort that Python makes, for one recorder to be compared with another: `main` runs them all.

Runs on 3.9 and later. Nothing in it depends on time, addresses or the order of sets.
"""

import asyncio
import collections
import contextlib
import functools
import itertools
import json
import operator
import re
import threading


def fibonacci(n):
    return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)


def count_up(n):
    for i in range(n):
        got = yield i
        if got:
            yield got


def delegate(n):
    yield from count_up(n)
    return "done"


def generators():
    assert list(count_up(4)) == [0, 1, 2, 3]
    gen = count_up(3)
    next(gen)
    assert gen.send("x") == "x"
    gen.close()
    gen = count_up(3)
    next(gen)
    with contextlib.suppress(KeyError):
        gen.throw(KeyError("thrown"))
    assert list(delegate(3)) == [0, 1, 2]
    unstarted = count_up(1)
    unstarted.close()
    outer = delegate(2)
    next(outer)
    with contextlib.suppress(ValueError):
        outer.throw(ValueError("inner"))
    return sum(x * x for x in count_up(3))


class Resource:
    def __init__(self, name):
        self.name = name

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        return exc[0] is LookupError

    @property
    def size(self):
        return len(self.name)

    @staticmethod
    def make(name):
        return Resource(name)

    @classmethod
    def default(cls):
        return cls("default")

    def __getattr__(self, name):
        raise AttributeError(name)

    def __call__(self, *args, **kwargs):
        return sum(args) + len(kwargs)

    def __eq__(self, other):
        return self.name == other.name

    def __hash__(self):
        return 7

    def __repr__(self):
        return f"<{self.name!s}>"


class Derived(Resource):
    def __init__(self):
        super().__init__("derived")

    def __getitem__(self, key):
        if key > 3:
            raise IndexError(key)
        return key


class Meta(type):
    def __call__(cls, *args):
        return super().__call__(*args)


class WithMeta(metaclass=Meta):
    def __init__(self, value):
        self.value = value


def classes():
    with Resource("a") as r:
        assert r.size == 1
    with Resource("b"):
        raise LookupError
    assert Resource.make("c") == Resource("c")
    assert Resource.default().size == 7
    assert not hasattr(r, "missing")
    assert r(1, 2, x=3) == 4
    assert r(*[1, 2], y=1) == 4
    assert list(Derived()) == [0, 1, 2, 3]
    assert {Resource("k"): 1}[Resource("k")] == 1
    assert WithMeta(3).value == 3
    assert str([Resource("q")]) == "[<q>]"
    assert isinstance(collections.namedtuple("P", "x y")(1, 2)._replace(x=3).x, int)


def fail(depth):
    if depth == 0:
        raise RuntimeError("bottom")
    try:
        return fail(depth - 1)
    finally:
        len("cleanup")


def deep(n):
    return deep(n - 1) if n else 0


def exceptions():
    with contextlib.suppress(RuntimeError):
        fail(5)
    try:
        sorted([3, 1, 2], key=lambda v: 1 // (v - 2))
    except ZeroDivisionError as error:
        assert error.__traceback__ is not None
    try:
        try:
            fail(1)
        except RuntimeError as error:
            raise KeyError("again") from error
    except KeyError:
        pass
    try:
        int("no number")
    except ValueError:
        pass
    try:
        [].pop()
    except IndexError:
        pass
    deep(300)


@functools.cache
def cached(n):
    return n * 2


def wrap(function):
    @functools.wraps(function)
    def inner(*args):
        return function(*args)

    return inner


@wrap
def wrapped(x):
    return x + 1


def callbacks():
    assert sorted("hello", key=lambda c: -ord(c))[0] == "o"
    assert list(map(wrapped, [1, 2])) == [2, 3]
    assert list(filter(lambda v: v > 1, [1, 2])) == [2]
    assert functools.reduce(lambda a, b: a + b, [1, 2, 3]) == 6
    assert re.sub("[a-c]", lambda m: m.group().upper(), "abcd") == "ABCd"
    assert max([1, 5, 3], key=lambda v: -v) == 1
    assert [cached(n) for n in (1, 1, 2)] == [2, 2, 4]
    assert functools.partial(wrapped, 4)() == 5
    assert list(itertools.starmap(operator.add, [(1, 2)])) == [3]
    assert json.loads(json.dumps({"a": [1, None]}), object_hook=lambda d: d) == {"a": [1, None]}
    assert dict.fromkeys("ab", 1) == {"a": 1, "b": 1}
    return {k: v for k, v in zip("ab", [x for x in range(2)])}


async def agen(n):
    for i in range(n):
        await asyncio.sleep(0)
        yield i


async def worker(name, n):
    total = 0
    async for value in agen(n):
        total += value
    await asyncio.sleep(0)
    return name, total


class Locked:
    async def __aenter__(self):
        await asyncio.sleep(0)

    async def __aexit__(self, *exc):
        await asyncio.sleep(0)


async def broken():
    await asyncio.sleep(0)
    raise OSError("broken")


async def conduct():
    async with Locked():
        results = await asyncio.gather(worker("a", 2), worker("b", 3))
    try:
        await broken()
    except OSError:
        pass
    waiting = asyncio.ensure_future(asyncio.sleep(100))
    await asyncio.sleep(0)
    waiting.cancel()
    try:
        await waiting
    except asyncio.CancelledError:
        pass
    return results


def coroutines():
    loop = asyncio.new_event_loop()
    try:
        assert loop.run_until_complete(conduct()) == [("a", 1), ("b", 3)]
    finally:
        loop.close()


def in_thread(n):
    fibonacci(n)
    list(count_up(2))
    try:
        fail(2)
    except RuntimeError:
        pass


def threads():
    for n in (3, 4):
        thread = threading.Thread(target=in_thread, args=(n,))
        thread.start()
        thread.join()


def text():
    return f"{wrapped(1)!r:>5}" + "".join(chr(c) for c in (65, 66)) + "%s" % Resource("z")


def main():
    fibonacci(6)
    generators()
    classes()
    exceptions()
    callbacks()
    coroutines()
    text()


if __name__ == "__main__":
    main()
    threads()
