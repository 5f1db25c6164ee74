# The Python REPL: runs in the guest as uid 1000 and speaks the REPL protocol on descriptor 1000.
#
# Start it with `python3.14 -I -X utf8 python.py`, HOME and working directory /home/user, LANG=C.UTF-8, descriptor 0 at end of
# file, 1 and 2 pipes. -I keeps the start independent of the environment and of files in the working directory; site stays on,
# because package layers need it. Exit status: 0 the agent closed the control socket, 70 a malformed request, 71 the control
# socket is unusable (user code closed it or wrote over it).
#
# This file and python_session.py are what every execution needs. The rest lies beside them and is loaded at its first use (`part`).
#
# What lasts between executions: the namespace of `__main__`, modules, threads, os.environ as the code left it, signal handlers
# but SIGINT. What does not: sys.stdin/stdout/stderr, descriptors 0-2, trace functions, the execution's `env`. asyncio tasks
# go on whenever a later execution awaits. atexit handlers run when the agent closes the control socket, as they would in an
# interactive interpreter, not after each execution. After an execution that is final nothing lasts: it ends as a program does.
import posix

CONTROL = 1000
posix.set_inheritable(CONTROL, False)

import builtins
import sys
from _ast import Expr, Expression
from _thread import _count as thread_count
from atexit import _ncallbacks as exit_function_count, _run_exitfuncs as run_exit_functions
from _functools import partial
from _signal import SIGINT, default_int_handler, getsignal, signal
from io import BufferedReader, BufferedWriter, BytesIO, FileIO, TextIOWrapper
from linecache import cache as line_cache
from os import environ
from posix import O_CLOEXEC, _exit, close, dup2, getpid, open as open_file, readinto, register_at_fork, write
from sys import excepthook as default_hook, getprofile, gettrace, modules, setprofile, settrace

# Functions defined below look names up in this copy, so user code may delete or replace any builtin; and names imported above
# stay what they are, whatever it does to the modules they come from.
__builtins__ = dict(vars(builtins))

MAGIC = 0x32584253
HEADER_BYTES = 24
REQUEST_BYTES = 4096  # A longer request takes more than one read.
ATTEMPTS_LIMIT = 100
NO_VALUE = 0xFFFFFFFF
# Flags of a request.
FINAL = 1
STDIN = 2
COMPLETE = 4
IS_COMPLETE = 8
# Kinds of messages.
DISPLAY = 1
HAS_STDIN = 2
VALUE_LIMIT_BYTES = 32_768
ALLOW_AWAIT = 0x2000  # ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
IS_COROUTINE = 0x80  # inspect.CO_COROUTINE
FUNCTION = type(lambda: None)
OUR_DIRECTORY = (lambda: None).__code__.co_filename.rpartition("/")[0] + "/"
parts = {}


def load(name, names):
    path = f"{OUR_DIRECTORY}python_{name}.py"
    with FileIO(path) as file:
        source = file.readall()
    exec(compile(source, path, "exec", 0, True), names)
    return names


def part(name):
    """The names of one of our other files. It is no module: user code can neither see it nor import it by accident."""
    names = parts.get(name)
    if names is None:
        names = parts[name] = load(name, globals().copy())
    return names


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


def display(*objects, **options):
    """Shows objects with all they offer: HTML, images, text. With raw=True they are dictionaries, MIME type → content."""
    part("display")["display"](objects, options)


class Interrupts:
    """The handler of SIGINT: what it calls is exchanged by storing an attribute, at which moment nothing can come between.

    It adds no frame to tracebacks, and is not default_int_handler itself, which asyncio.run() would replace by a handler that
    cannot stop a busy loop.
    """

    __slots__ = ("__call__",)


class Repl:
    def __init__(self):
        self.pid = getpid()
        # The request whose code runs, the lock under which things are shown for it, and how much was.
        self.current = self.door = None
        self.shown_bytes = 0
        self.request = bytearray(REQUEST_BYTES)
        self.view = memoryview(self.request)
        self.header = self.view[:HEADER_BYTES].cast("I")
        self.reply = bytearray(16)
        self.reply_words = memoryview(self.reply).cast("I")
        # SIGINT raises only while code runs; at any other time it is noted, so that it cannot end this process.
        self.noted = {}
        self.note = self.noted.setdefault
        self.on_interrupt = Interrupts()
        self.on_interrupt.__call__ = self.note
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
            if self.noted:
                self.noted.clear()  # It was meant for what ran before.
            source = str(body[code_at:end], "utf-8")
            block = bytes(body[env_at:code_at]) if env_bytes else None
            seed = bytes(body[HEADER_BYTES:env_at]) if seed_bytes else None
            body = None
            if flags & (COMPLETE | IS_COMPLETE):
                code, value = self.assist(flags, seed, source)
            else:
                self.current = request
                code, value = self.execute(flags, seed, block, source)
            words = self.reply_words
            words[0] = request
            words[2] = code
            words[3] = NO_VALUE if value is None else len(value)
            self.send(self.reply if value is None else self.reply + value)
            source = value = None
            self.streams.put_back_descriptors()

    def assist(self, flags, seed, source):
        """Answers about code that somebody types; runs none of it, nor anything else of the user's."""
        try:
            if seed:
                reseed(seed)
                self.namespace.begin_clone()
            self.on_interrupt.__call__ = default_int_handler
            if flags & COMPLETE:
                answer = part("complete")["complete"](self.namespace.names, source)
            else:
                answer = part("blocks")["is_complete"](source)
            self.on_interrupt.__call__ = self.note
        except BaseException as error:
            self.on_interrupt.__call__ = self.note
            return 130 if isinstance(error, KeyboardInterrupt) else 1, None
        return 0, answer

    def execute(self, flags, seed, block, source):
        """Runs one request; returns its exit code and the value's text or None."""
        environment = Environment(block) if block else None
        value = error = None
        code = 0
        try:
            if seed:
                reseed(seed)
                self.namespace.begin_clone()
            if flags & STDIN:
                self.open_stdin()
            self.on_interrupt.__call__ = default_int_handler
            if self.noted:
                raise KeyboardInterrupt
            box = [self.namespace.evaluate(source)]
            if box[0] is not None:
                value = self.show(box)
            self.on_interrupt.__call__ = self.note
        except BaseException as caught:
            self.on_interrupt.__call__ = self.note
            error = caught
        # After a final execution: whether its end has anything to wait for or to run.
        if "matplotlib.pyplot" in modules or (
            flags & FINAL and (thread_count() or exit_function_count() or self.namespace.loop is not None)
        ):
            try:
                self.on_interrupt.__call__ = default_int_handler
                error, code = part("ending")["wind_up"](flags, error)
                self.on_interrupt.__call__ = self.note
            except BaseException as caught:
                self.on_interrupt.__call__ = self.note
                error = caught
        for _ in range(ATTEMPTS_LIMIT):
            try:
                return self.finish(environment, error, value, code)
            except BaseException:
                # An interrupt amid the report, which is printed again, or a signal handler of the user's.
                self.on_interrupt.__call__ = self.note
        _exit(71)

    def open_stdin(self):
        fifo = open_file(OUR_DIRECTORY + "stdin", O_CLOEXEC)
        dup2(fifo, 0)
        close(fifo)
        self.send_message(HAS_STDIN, b"")

    def show(self, box):
        """The text of the value that a list holds; what else it offers is sent as display data."""
        value = box[0]
        kind = type(value)
        if kind not in PLAIN_TYPES:
            if kind is COROUTINE:
                value = None
                return self.namespace.let_go(box)
            if is_rich(value):
                part("display")["display"]((value,), {})
        return describe(value)

    def finish(self, environment, error, value, code):
        if gettrace() is not None:
            settrace(None)
        if getprofile() is not None:
            setprofile(None)
        if getsignal(SIGINT) is not self.on_interrupt:
            signal(SIGINT, self.on_interrupt)
        self.streams.flush()
        if error is not None:
            self.on_interrupt.__call__ = default_int_handler
            code = report(error)
            self.on_interrupt.__call__ = self.note
            self.streams.flush()
        if getpid() != self.pid:
            _exit(code)  # A fork that came back from the user's code.
        self.current = None
        if self.door is not None:
            with self.door:  # Waits for a thread that is amid a message.
                self.shown_bytes = 0
        if environment:
            environment.restore()
        return code, None if error is not None else value

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

    def send_message(self, kind, data):
        header = bytearray(16)
        words = memoryview(header).cast("I")
        words[0], words[1], words[3] = self.current, kind, len(data)
        return self.send(memoryview(header + data))

    def send(self, data):
        """Sends all of it, whatever interrupts; returns what did."""
        late = None
        while data:
            sent = []
            try:
                sent.extend(map(write, (CONTROL,), (data,)))
            except OSError as error:
                if error.errno is not None:
                    _exit(71)
            except BaseException as error:
                late = error  # As in receive().
            if sent:
                if sent[0] == len(data):
                    break
                data = data[sent[0] :]
        return late

    def leave(self):
        """The agent has closed the socket: end as an interactive interpreter does, but wait for no thread."""
        try:
            run_exit_functions()
        except BaseException:
            pass  # Already reported by atexit.
        self.streams.flush()
        _exit(0)


if __name__ == "__main__":
    load("session", globals())
    LIBRARY_PATH = tuple(sys.path)
    sys.argv = [""]
    sys.path.insert(0, "")
    sys.set_int_max_str_digits(0)
    sys.meta_path.insert(2, ImportHook())
    builtins.display = display
    display.__module__ = "builtins"
    repl = Repl()
    repl.serve()
