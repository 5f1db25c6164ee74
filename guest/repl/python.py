# The Python REPL: runs in the guest as uid 1000 and speaks the REPL protocol on descriptor 1000.
#
# Start it with `python3.14 -I -X utf8 python.py`, HOME and working directory /home/user, LANG=C.UTF-8, descriptor 0 at end of
# file, 1 and 2 pipes. -I keeps the start independent of the environment and of files in the working directory; site stays on,
# because package layers need it. Exit status: 0 the agent closed the control socket, 70 a malformed request, 71 the control
# socket is unusable (user code closed it or wrote over it).
#
# What lasts between executions: the namespace of `__main__`, modules, threads, os.environ as the code left it, signal handlers
# but SIGINT. What does not: sys.stdin/stdout/stderr, descriptors 0-2, trace functions, the execution's `env`. asyncio tasks
# go on whenever a later execution awaits. atexit handlers run when the agent closes the control socket, as they would in an
# interactive interpreter, not after each execution.
import posix

CONTROL = 1000
posix.set_inheritable(CONTROL, False)

import builtins
import sys
from _ast import Expr, Expression
from _functools import partial
from _signal import SIGINT, default_int_handler, getsignal, signal
from io import BufferedReader, BufferedWriter, BytesIO, FileIO, TextIOWrapper
from linecache import cache as line_cache
from os import environ
from posix import _exit, close, dup2, getpid, readinto, register_at_fork, write
from sys import getprofile, gettrace, modules, setprofile, settrace

# Functions defined below look names up in this copy, so user code may delete or replace any builtin; and names imported above
# stay what they are, whatever it does to the modules they come from.
__builtins__ = dict(vars(builtins))

MAGIC = 0x32584253
HEADER_BYTES = 24
REQUEST_BYTES = 4096  # A longer request takes more than one read.
ATTEMPTS_LIMIT = 100
NO_VALUE = 0xFFFFFFFF
VALUE_LIMIT_BYTES = 65_536
SOURCES_LIMIT = 500
SOURCES_LIMIT_CHARS = 2 << 20
ONLY_AST = 0x400  # ast.PyCF_ONLY_AST
ALLOW_AWAIT = 0x2000  # ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
FUTURE_MASK = 0x1FE0000  # every CO_FUTURE_* flag
IS_COROUTINE = 0x80  # inspect.CO_COROUTINE
FUNCTION = type(lambda: None)
OUR_FILE = (lambda: None).__code__.co_filename


class Stdin(FileIO):
    """Descriptor 0, noting when it was read: only then must its buffers be dropped for the next execution."""

    used = False

    def readinto(self, buffer):
        self.used = True
        return FileIO.readinto(self, buffer)

    def readall(self):
        self.used = True
        return FileIO.readall(self)


def open_output(descriptor, name):
    # backslashreplace: a lone surrogate is shown, not an error.
    raw = FileIO(descriptor, "w", closefd=False)
    raw.name = name
    return TextIOWrapper(BufferedWriter(raw), "utf-8", "backslashreplace", line_buffering=True)


class Streams:
    """The three standard streams and the descriptors below them, put right after each execution."""

    def __init__(self):
        # Duplicates above every number that a program is likely to use; dup3 makes them close-on-exec.
        for descriptor in (0, 1, 2):
            dup2(descriptor, CONTROL + 1 + descriptor, False)
        self.stdout = self.stderr = None
        self.put_back()

    def flush(self):
        """Brings everything printed into the pipes and the original stream objects back into place."""
        try:
            if sys.stdout is not self.stdout or sys.stderr is not self.stderr:
                self.flush_replaced()
            self.stdout.flush()
            self.stderr.flush()
        except BaseException:
            self.reopen()
        try:
            if sys.stdin is self.stdin and not self.stdin_raw.used and not self.stdin.closed:
                return
        except (AttributeError, ValueError):
            pass  # Deleted or detached.
        self.put_back()

    def flush_replaced(self):
        for name in ("stdout", "stderr"):
            stream = getattr(sys, name, None)
            if stream is not self.stdout and stream is not self.stderr:
                try:
                    stream.flush()
                except BaseException:
                    pass  # The user's own stream object: what it does is its own affair.
        sys.stdout = self.stdout
        sys.stderr = self.stderr

    def reopen(self):
        """After a stream was closed, detached or lost its descriptor: saves what it still holds, then starts afresh."""
        self.put_back_descriptors()
        for stream in (self.stdout, self.stderr):
            try:
                stream.flush()
            except BaseException:
                pass  # It cannot write any more; a new one takes its place.
        self.stdout = self.stderr = None
        self.put_back()

    def put_back(self):
        self.stdin_raw = Stdin(0, closefd=False)
        self.stdin_raw.name = "<stdin>"
        buffer = BufferedReader(self.stdin_raw)
        self.stdin = sys.stdin = sys.__stdin__ = TextIOWrapper(buffer, "utf-8", "surrogateescape")
        if self.stdout is None:
            self.stdout = sys.__stdout__ = open_output(1, "<stdout>")
            self.stderr = sys.__stderr__ = open_output(2, "<stderr>")
        sys.stdout = self.stdout
        sys.stderr = self.stderr

    def put_back_descriptors(self):
        for descriptor in (0, 1, 2):
            try:
                dup2(CONTROL + 1 + descriptor, descriptor)
            except OSError:
                pass  # The code closed our duplicate as well; nothing is left to restore from.


class Namespace:
    """The user's `__main__`: a fresh module, so that nothing of ours is in it and pickle finds what it defines."""

    def __init__(self):
        module = type(sys)("__main__")
        modules["__main__"] = module
        self.names = vars(module)
        self.names["__builtins__"] = builtins
        self.untouched = len(self.names)
        self.count = 0
        self.source_chars = 0
        self.loop = None
        self.context = None

    def begin_clone(self):
        """Unless something was defined, the first execution of a clone is its number 1, whatever the template has run."""
        if len(self.names) == self.untouched:
            self.count = 0

    def evaluate(self, source):
        """Runs `source` as a module; returns the value of its trailing expression, None without one."""
        if source[:1] == "\ufeff":
            source = source[1:]
        name = self.remember(source)
        self.names["__builtins__"] = builtins
        if source[-1:] == ")" and "\n" not in source and source.partition("(")[0].isidentifier():
            # Most likely `print(…)`. Without the detour over a syntax tree a sixth of the instructions is saved.
            code = self.compile_expression(source, name)
            if code is not None and not code.co_flags & IS_COROUTINE:
                return self.call(code)
        # dont_inherit: __future__ statements hold for the execution that has them and no other.
        tree = compile(source, name, "exec", ONLY_AST | ALLOW_AWAIT, True)
        body = tree.body
        last = body.pop().value if body and type(body[-1]) is Expr else None
        code = compile(tree, name, "exec", ALLOW_AWAIT, True) if body else None
        if last is not None:
            flags = ALLOW_AWAIT | (code.co_flags & FUTURE_MASK if code else 0)
            last = compile(Expression(last), name, "eval", flags, True)
        del tree, body
        if ((code.co_flags if code else 0) | (last.co_flags if last else 0)) & IS_COROUTINE:
            return self.drive(self.run_async(code, last))
        if code:
            self.call(code)
        return self.call(last) if last else None

    def compile_expression(self, source, name):
        try:
            return compile(source, name, "eval", ALLOW_AWAIT, True)
        except SyntaxError:
            return None  # A statement after all, like `assert(x)`, or an error: the long way says which.

    def remember(self, source):
        """Names the source and lets tracebacks, warnings and inspect find its lines; names come round, so it is bounded."""
        self.count = self.count % SOURCES_LIMIT + 1
        name = f"<input {self.count}>"
        self.source_chars += len(source)
        if self.source_chars > SOURCES_LIMIT_CHARS:
            for number in range(1, SOURCES_LIMIT + 1):
                line_cache.pop(f"<input {number}>", None)
            self.source_chars = len(source)
        if "\n" not in source and "\r" not in source:
            lines = [source]
        else:
            # Not splitlines(): that also splits at form feeds and other characters that end no line of Python.
            lines = [line + "\n" for line in source.replace("\r\n", "\n").replace("\r", "\n").split("\n")]
        line_cache[name] = (len(source), None, lines, name)
        return name

    def call(self, code):
        if self.context is not None:
            return self.context.run(eval, code, self.names)
        return eval(code, self.names)

    async def run_async(self, *parts):
        """All of an execution that awaits runs on the loop, also what stands before the first await."""
        value = None
        for part in parts:
            value = eval(part, self.names) if part else None
            if part and part.co_flags & IS_COROUTINE:
                value = await value
        return value

    def drive(self, coroutine):
        """Runs a top-level await on the one event loop of this interpreter."""
        import asyncio

        if self.loop is None or self.loop.is_closed():
            self.loop = asyncio.new_event_loop()
        if self.context is None:
            import contextvars

            self.context = contextvars.copy_context()
        task = self.loop.create_task(coroutine, context=self.context)
        task.add_done_callback(lambda _: self.loop.stop())
        stopped_by = None
        while not task.done():
            try:
                self.loop.run_forever()
            except (KeyboardInterrupt, SystemExit) as error:
                # Raised in this task it has ended it. Raised in an idle loop or a callback, it must still end the task.
                if not task.done():
                    stopped_by = error
                    task.cancel()
        if stopped_by is None or not task.cancelled():
            return task.result()
        try:
            task.result()
        except BaseException as cancelled:
            trace = cancelled.__traceback__  # Where the code was waiting: the lines worth showing.
        raise stopped_by.with_traceback(trace)


def report(error):
    """Prints an uncaught exception as the interpreter would, without frames of ours; returns the exit code."""
    if isinstance(error, SystemExit):
        code = error.code
        if code is None:
            return 0
        if isinstance(code, int):
            return code & 0xFF
        print(code, file=sys.stderr)
        return 1
    trace = error.__traceback__
    while trace is not None:
        name = trace.tb_frame.f_code.co_filename
        if name != OUR_FILE and "/asyncio/" not in name:
            break
        trace = trace.tb_next
    error.__traceback__ = trace
    if isinstance(error, SyntaxError) and error.text is None:
        lines = line_cache.get(error.filename, (0, None, ()))[2]
        if 0 < (error.lineno or 0) <= len(lines):
            error.text = lines[error.lineno - 1]  # The compiler itself looks for the line in a file of that name.
    hook = sys.excepthook
    try:
        hook(type(error), error, trace)
    except BaseException as second:
        second.__traceback__ = second.__traceback__.tb_next
        sys.__excepthook__(type(second), second, second.__traceback__)
        sys.__excepthook__(type(error), error, trace)
    return 130 if isinstance(error, KeyboardInterrupt) else 1


def describe(value):
    """The text of a trailing expression's value: its repr, bounded before it is made where that is cheap to do."""
    kind = type(value)
    if kind is str or kind is bytes:
        value = value[:VALUE_LIMIT_BYTES]
    elif kind is int and value.bit_length() > 8 * VALUE_LIMIT_BYTES:
        return f"<int of {value.bit_length()} bits>".encode()
    elif (kind is list or kind is tuple) and len(value) > VALUE_LIMIT_BYTES:
        value = value[:VALUE_LIMIT_BYTES]
    try:
        text = repr(value)
    except Exception as error:
        text = f"<{kind.__name__} object whose repr raised {type(error).__name__}>"
    data = text[: VALUE_LIMIT_BYTES + 1].encode("utf-8", "backslashreplace")
    if len(data) > VALUE_LIMIT_BYTES:
        data = data[: VALUE_LIMIT_BYTES - 3].decode("utf-8", "ignore").encode() + "…".encode()
    return data


class Environment:
    """The `env` of one execution, and what stood in its place before."""

    def __init__(self, block):
        self.before = []
        for entry in block.split(b"\0"):
            name, equals, value = entry.decode("utf-8", "surrogateescape").partition("=")
            if equals and name:
                self.before.append((name, environ.get(name)))
                environ[name] = value
        self.apply_zone()

    def restore(self):
        for name, value in reversed(self.before):
            if value is None:
                environ.pop(name, None)
            else:
                environ[name] = value
        self.apply_zone()

    def apply_zone(self):
        if any(name == "TZ" for name, _ in self.before):
            import time

            time.tzset()


def reseed(seed):
    """Makes clones of one memory image draw different numbers. The kernel's generator is the agent's task.

    What cannot be changed in a running interpreter is the hash seed: set order is the same in every clone.
    """
    number = int.from_bytes(seed, "little")
    words = [int.from_bytes(seed[i : i + 4], "little") for i in range(0, len(seed), 4)]
    steps = {
        "random": lambda module: module._inst.seed(number),
        "numpy.random": lambda module: module.seed(words),
        "torch": lambda module: module.manual_seed(number & (1 << 63) - 1),
        "_ssl": lambda module: module.RAND_add(seed, float(len(seed))),
        # Its generator is a random.Random of its own, made at first use.
        "tempfile": lambda module: setattr(module, "_name_sequence", None),
        # A random node id, where the machine has no hardware address.
        "uuid": lambda module: setattr(module, "_node", None),
        "multiprocessing.process": lambda module: setattr(module.current_process(), "authkey", seed),
    }
    for name, step in steps.items():
        module = modules.get(name)
        if module is not None:
            try:
                step(module)
            except Exception:
                pass  # A module of the user's by that name, or one half imported: nothing of it to reseed.



class Repl:
    def __init__(self):
        self.pid = getpid()
        self.request = bytearray(REQUEST_BYTES)
        self.view = memoryview(self.request)
        self.header = self.view[:HEADER_BYTES].cast("I")
        self.reply = bytearray(16)
        self.reply_words = memoryview(self.reply).cast("I")
        # Not default_int_handler itself: asyncio.run() would replace that one by a handler that cannot stop a busy loop.
        self.on_interrupt = partial(default_int_handler)
        signal(SIGINT, self.on_interrupt)
        # A fork that lives on must not hold the agent's socket, nor read from it.
        register_at_fork(after_in_child=partial(close, CONTROL))
        self.streams = Streams()
        self.namespace = Namespace()

    def serve(self):
        self.send(b"R")
        view = self.view
        while True:
            size = self.receive(view)
            while size < HEADER_BYTES:
                size += self.receive(view[size:])
            magic, request, flags, seed_bytes, env_bytes, code_bytes = self.header
            if magic != MAGIC or seed_bytes not in (0, 32):
                _exit(70)
            env_at = HEADER_BYTES + seed_bytes
            code_at = env_at + env_bytes
            end = code_at + code_bytes
            if size == end:
                body = view
            else:
                body = self.receive_rest(size, end)
            source = str(body[code_at:end], "utf-8")
            block = bytes(body[env_at:code_at]) if env_bytes else None
            seed = bytes(body[HEADER_BYTES:env_at]) if seed_bytes else None
            body = None
            code, value = self.execute(seed, block, source)
            words = self.reply_words
            words[0] = request
            words[2] = code
            words[3] = NO_VALUE if value is None else len(value)
            self.send(self.reply if value is None else self.reply + value)
            source = value = None
            self.streams.put_back_descriptors()

    def execute(self, seed, block, source):
        """Runs one request; returns its exit code and the value's text or None."""
        environment = Environment(block) if block else None
        value = error = None
        try:
            if seed:
                reseed(seed)
                self.namespace.begin_clone()
            value = self.namespace.evaluate(source)
            if value is not None:
                value = describe(value)
        except BaseException as caught:
            error = caught
        for _ in range(ATTEMPTS_LIMIT):
            try:
                return self.finish(environment, error, value)
            except BaseException:
                # An interrupt or a signal handler of the user's, too late for the code. If it came amid the report, the
                # report is printed again.
                continue
        _exit(71)

    def finish(self, environment, error, value):
        if gettrace() is not None:
            settrace(None)
        if getprofile() is not None:
            setprofile(None)
        if getsignal(SIGINT) is not self.on_interrupt:
            signal(SIGINT, self.on_interrupt)
        self.streams.flush()
        code = 0
        if error is not None:
            value = None
            code = report(error)
            self.streams.flush()
        if getpid() != self.pid:
            _exit(code)  # A fork that came back from the user's code.
        if environment:
            environment.restore()
        return code, value

    def receive(self, target):
        got = []
        while not got:
            try:
                # extend(map()) keeps the result even if a signal handler of the user's raises right after the read.
                got.extend(map(readinto, (CONTROL,), (target,)))
            except OSError as error:
                if error.errno is not None:
                    _exit(71)
            except BaseException:
                pass  # An interrupt, or a handler or timer of the user's, between executions.
        if got[0] == 0:
            self.leave()
        return got[0]

    def receive_rest(self, size, end):
        """A request that is longer than one read."""
        whole = memoryview(bytearray(end))
        whole[:size] = self.view[:size]
        while size < end:
            size += self.receive(whole[size:])
        return whole

    def send(self, data):
        while data:
            sent = []
            try:
                sent.extend(map(write, (CONTROL,), (data,)))
            except OSError as error:
                if error.errno is not None:
                    _exit(71)
            except BaseException:
                pass  # As in receive().
            if sent:
                if sent[0] == len(data):
                    return
                data = data[sent[0] :]

    def leave(self):
        """The agent has closed the socket: end as an interactive interpreter does, but wait for no thread."""
        try:
            atexit = modules.get("atexit")
            if atexit:
                atexit._run_exitfuncs()
        except BaseException:
            pass  # Already reported by atexit.
        self.streams.flush()
        _exit(0)


class MultiprocessingHook:
    """Waits in sys.meta_path for `multiprocessing` to be imported, adapts it, and is gone."""

    def find_spec(self, name, path=None, target=None):
        if name != "multiprocessing.context":
            return None
        sys.meta_path.remove(self)
        spec = modules["_frozen_importlib_external"].PathFinder.find_spec(name, path)
        load = spec.loader.exec_module

        def load_and_adapt(module):
            load(module)
            adapt_multiprocessing(module)

        spec.loader.exec_module = load_and_adapt
        return spec


def adapt_multiprocessing(context):
    """Makes workers know what the session defined.

    Workers are forked, so they inherit the session. What plain pickle refuses (lambdas, nested functions), and what was
    defined after the workers were forked, travels by value with cloudpickle; such a function runs on the worker's own
    `__main__`, into which only what the worker cannot have is filled.
    """
    reduction = modules["multiprocessing.reduction"]
    process = modules["multiprocessing.process"]
    plain = reduction.ForkingPickler
    session = vars(modules["__main__"])
    inherited = {}  # `__main__` when the oldest living worker was forked; of data the name alone.
    spawned = False
    context._default_context._default_context = context._concrete_contexts["fork"]

    def before_fork():
        if not process.active_children():
            inherited.clear()
            for name, value in session.items():
                inherited[name] = value if isinstance(value, (type, FUNCTION)) else None

    def travels_by_value(thing):
        root, *rest = thing.__qualname__.split(".")
        found = known = session.get(root)
        for part in rest:
            found = getattr(found, part, None)
        return found is not thing or spawned or bool(inherited) and inherited.get(root) is not known

    def is_ours(thing):
        return isinstance(thing, (type, FUNCTION)) and getattr(thing, "__module__", None) == "__main__"

    class ByReference(plain):
        def reducer_override(self, thing):
            if is_ours(thing) and travels_by_value(thing):
                raise reduction.pickle.PicklingError("not known to the worker")
            return NotImplemented

    def override(pickler, thing, otherwise):
        if not is_ours(thing):
            return otherwise(thing)
        if not travels_by_value(thing):
            return NotImplemented
        if isinstance(thing, type) or thing.__globals__ is not session:
            return otherwise(thing)
        make, (code, _, *rest), (attributes, slots), *_ = pickler._dynamic_function_reduce(thing)
        carried = slots["__globals__"]
        for name in [name for name in carried if name in inherited and not isinstance(carried[name], (type, FUNCTION))]:
            del carried[name]
        return make, (code, AsText(WORKER_NAMES), *rest), (attributes, slots), None, None, AsText(SET_STATE)

    def dump(data, file, protocol=None):
        nonlocal spawned
        spawned = spawned or context.get_spawning_popen() is not None
        scratch = BytesIO()
        try:
            ByReference(scratch, protocol).dump(data)
        except Exception:
            scratch = BytesIO()
            pickle_by_value(data, scratch, protocol, plain._extra_reducers, override)
        file.write(scratch.getbuffer())

    def dumps(cls, data, protocol=None):
        buffer = BytesIO()
        dump(data, buffer, protocol)
        return buffer.getbuffer()

    register_at_fork(before=before_fork)
    reduction.dump = dump
    plain.dumps = classmethod(dumps)


# Evaluated in the worker, so that it needs no module of ours there. The state is what cloudpickle makes of a function.
WORKER_NAMES = "__import__('sys').modules['__main__'].__dict__"
SET_STATE = """lambda function, state: (
    [function.__globals__.__setitem__(name, value) for name, value in state[1]["__globals__"].items()
        if name not in function.__globals__ or isinstance(value, (type, type(lambda: 0)))],
    state[1]["__globals__"].clear(),
    __import__("cloudpickle.cloudpickle").cloudpickle._function_setstate(function, state))"""


class AsText:
    """Travels as the expression that makes the object in the worker."""

    def __init__(self, text):
        self.text = text

    def __reduce__(self):
        return eval, (self.text,)

    def __call__(self):
        raise TypeError("only in the worker")  # Pickle insists that a state setter be callable here, too.


def pickle_by_value(data, file, protocol, extra_reducers, override):
    import collections

    import cloudpickle

    class ByValue(cloudpickle.Pickler):
        def __init__(self):
            super().__init__(file, protocol)
            self.dispatch_table = collections.ChainMap(extra_reducers, self.dispatch_table)

        def reducer_override(self, thing):
            return override(self, thing, super().reducer_override)

    ByValue().dump(data)


if __name__ == "__main__":
    sys.argv = [""]
    sys.path.insert(0, "")
    sys.set_int_max_str_digits(0)
    sys.meta_path.insert(2, MultiprocessingHook())
    Repl().serve()
