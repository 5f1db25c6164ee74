# The end of an execution that leaves more than output: a part of python.py, loaded when one does; names not defined here are
# that file's.


def wind_up(flags, error):
    """Shows the figures left open and, after a final execution, ends the program; returns the error to report and the code."""
    if "matplotlib.pyplot" in modules and not isinstance(error, KeyboardInterrupt):
        try:
            part("display")["show_figures"]()
        except BaseException as late:
            error = error or late
    if flags & FINAL:
        return None, end_program(error)
    return error, 0


def end_program(error):
    """What the interpreter does at its end, in its order: the loop, the report, the threads, the functions of atexit."""
    interrupts = []
    others = getattr(sys, "unraisablehook", sys.__unraisablehook__)

    def note(unraisable):
        # The interpreter reports and passes over what interrupts a thread's end or a function of atexit: nobody else would know.
        if unraisable.exc_type is KeyboardInterrupt:
            interrupts.append(unraisable.exc_type)
        kind, value, trace, *rest = unraisable
        others(type(unraisable)((kind, value, users_part(trace), *rest)))

    sys.unraisablehook = note
    loop = repl.namespace.loop
    if loop is not None and not loop.is_closed():
        try:
            part("await")["close_loop"](loop)
        except BaseException as late:
            error = error or late
    code = 0 if error is None else report_now(error)
    threading = modules.get("threading")
    for step in (getattr(threading, "_shutdown", None), run_exit_functions):
        try:
            if step is not None:
                step()
        except BaseException as late:
            if report_now(late) == 130:
                interrupts.append(late)
    sys.unraisablehook = others
    return 130 if interrupts else code


def report_now(error):
    """The report, on the program's own stderr where that still works."""
    try:
        return report(error)
    except BaseException:
        repl.streams.flush()
        return report(error)
