# Multiprocessing in a session: a part of python.py, loaded when `multiprocessing` is imported; names not defined here are that file's.


def adapt(context):
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
        is_plain = False
        try:
            ByReference(scratch, protocol).dump(data)
            is_plain = True
        except Exception:
            pass  # Whatever is wrong with it is said by the second attempt, which has nothing to do with this one.
        if not is_plain:
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
