# What an execution is made of: the user's namespace, errors, values, environment, seeds, adapted imports. Loaded at the start into
# the names of python.py.
SOURCES_LIMIT = 500
SOURCES_LIMIT_CHARS = 2 << 20
ONLY_AST = 0x400  # ast.PyCF_ONLY_AST
FUTURE_MASK = 0x1FE0000  # every CO_FUTURE_* flag
# A value of one of these types is shown by its repr alone; other types may have methods that say more.
PLAIN_TYPES = frozenset((bool, bytes, complex, dict, float, int, list, set, str, tuple, type, FUNCTION))
RICH_METHODS = frozenset(
    f"_repr_{kind}_" for kind in ("mimebundle", "html", "markdown", "latex", "svg", "png", "jpeg", "json", "javascript", "pdf")
)
# Modules that are adapted when they are imported, and the part that does it.
ADAPTED = {
    "multiprocessing.context": "multiprocessing",
    "matplotlib.pyplot": "display",
    "IPython.core.display_functions": "display",
}


async def nothing():
    pass


coroutine = nothing()
coroutine.close()  # Else it would be said that it was never awaited.
COROUTINE = type(coroutine)
del coroutine, nothing


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
            return part("await")["run"](self, code, last)
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

    def let_go(self, box):
        """The text of a coroutine that nobody has awaited. It ends in a frame of the user's: a warning says where that was."""
        text = describe(box[0])
        name = f"<input {self.count}>"
        lines = "".join(line_cache[name][2]).rstrip().count("\n") if name in line_cache else 0
        eval(compile("\n" * lines + "box.clear()", name, "eval", 0, True), {"box": box})
        return text

    def call(self, code):
        if self.context is not None:
            return self.context.run(eval, code, self.names)
        return eval(code, self.names)


def is_ours(trace):
    return trace.tb_frame.f_code.co_filename.startswith(OUR_DIRECTORY)


def users_part(trace):
    """A traceback without frames of ours, nor of the event loop that we run."""
    if trace is not None and is_ours(trace):
        while trace is not None and (is_ours(trace) or "/asyncio/" in trace.tb_frame.f_code.co_filename):
            trace = trace.tb_next
    before = trace
    while before is not None:
        after = before.tb_next
        if after is not None and is_ours(after):
            while after is not None and is_ours(after):
                after = after.tb_next
            before.tb_next = after
        before = after
    return trace


def strip(error):
    """Leaves nothing of ours in what will be shown of an exception, its causes and its members."""
    found = {}
    rest = [error]
    while rest:
        error = rest.pop()
        if id(error) not in found:
            found[id(error)] = error
            error.__traceback__ = users_part(error.__traceback__)
            rest += [other for other in (error.__cause__, error.__context__) if other is not None]
            if isinstance(error, BaseExceptionGroup):
                rest += error.exceptions


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
    strip(error)
    if isinstance(error, SyntaxError) and error.text is None:
        lines = line_cache.get(error.filename, (0, None, ()))[2]
        if 0 < (error.lineno or 0) <= len(lines):
            error.text = lines[error.lineno - 1]  # The compiler itself looks for the line in a file of that name.
    hook = getattr(sys, "excepthook", default_hook)
    trace = error.__traceback__
    try:
        hook(type(error), error, trace)
    except BaseException as second:
        second.__traceback__ = second.__traceback__.tb_next
        default_hook(type(second), second, second.__traceback__)
        default_hook(type(error), error, trace)
    return 130 if isinstance(error, KeyboardInterrupt) else 1


def is_rich(value):
    """Whether a value's type has a method of display data. Looks without running code of the type."""
    for kind in type(value).__mro__:
        if not RICH_METHODS.isdisjoint(vars(kind)):
            return True
    return False


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


def library(name):
    """A module of the standard library, even where the user has a file of that name."""
    module = modules.get(name)
    if module is None:
        path = sys.path
        sys.path = list(LIBRARY_PATH)
        try:
            module = __import__(name)
        finally:
            sys.path = path
    return module


class ImportHook:
    """Waits in sys.meta_path for modules that need adapting."""

    def find_spec(self, name, path=None, target=None):
        if name == "matplotlib":
            # The backend that needs no screen; looking for another one takes longer than all the rest of the import.
            environ.setdefault("MPLBACKEND", "agg")
        if name not in ADAPTED:
            return None
        spec = modules["_frozen_importlib_external"].PathFinder.find_spec(name, path)
        if spec is None or spec.loader is None:
            return spec
        load = spec.loader.exec_module

        def load_and_adapt(module):
            load(module)
            part(ADAPTED[name])["adapt"](module)

        spec.loader.exec_module = load_and_adapt
        return spec
