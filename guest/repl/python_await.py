# Top-level await: a part of python.py, loaded when code first uses it; names not defined here are that file's.
import asyncio
import contextvars


def run(namespace, *parts):
    """Runs code with top-level awaits on the one event loop of this interpreter; returns its last part's value."""
    if namespace.loop is None or namespace.loop.is_closed():
        namespace.loop = asyncio.new_event_loop()
    if namespace.context is None:
        namespace.context = contextvars.copy_context()
    return drive(namespace.loop, namespace.loop.create_task(run_async(namespace.names, parts), context=namespace.context))


async def run_async(names, parts):
    """All of an execution that awaits runs on the loop, also what stands before the first await."""
    value = None
    for code in parts:
        value = eval(code, names) if code else None
        if code and code.co_flags & IS_COROUTINE:
            value = await value
    return value


def drive(loop, task):
    task.add_done_callback(lambda _: loop.stop())
    stopped_by = None
    while not task.done():
        try:
            loop.run_forever()
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


def close_loop(loop):
    """The end of the loop, as asyncio.run() has it: what still runs is cancelled and waited for."""
    try:
        tasks = asyncio.all_tasks(loop)
        for task in tasks:
            task.cancel()
        if tasks:
            loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        for task in tasks:
            if not task.cancelled() and task.exception() is not None:
                what = {"message": "unhandled exception during shutdown", "exception": task.exception(), "task": task}
                loop.call_exception_handler(what)
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.run_until_complete(loop.shutdown_default_executor())
    finally:
        loop.close()
