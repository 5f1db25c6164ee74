# Whether code is a finished block: a part of python.py, loaded when somebody types; names not defined here are that file's.
ALLOW_INCOMPLETE = 0x4000  # PyCF_ALLOW_INCOMPLETE_INPUT: the error has a type of its own when more input could mend it.
STEP = "    "
LEAVING = ("return", "pass", "break", "continue", "raise")
UNCOMPILABLE = (SyntaxError, ValueError, OverflowError, RecursionError, MemoryError)


def is_complete(source):
    """JSON: the state of the code, and what the next line would begin with."""
    warnings = library("warnings")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        state = state_of(source)
    indent = next_indent(source) if state == "incomplete" else ""
    return f'{{"state":"{state}","indent":"{indent.replace("\t", r"\t")}"}}'.encode()


def state_of(source):
    try:
        tree = compile(source, "<typed>", "exec", ONLY_AST | ALLOW_AWAIT | ALLOW_INCOMPLETE, True)
        compile(source, "<typed>", "exec", ALLOW_AWAIT, True)
    except UNCOMPILABLE as error:
        return "incomplete" if type(error).__name__ == "_IncompleteInputError" else "invalid"
    last = tree.body[-1] if tree.body else None
    is_compound = hasattr(last, "body") or hasattr(last, "cases")
    # As in the REPL of CPython: an empty line ends a compound statement.
    *others, last_line = source.replace("\r", "\n").split("\n")
    return "incomplete" if is_compound and (last_line.strip() or not others) else "complete"


def next_indent(source):
    scan = part("scan")["Scan"](source)
    line = None
    for line in scan.lines():
        pass
    if line is None or scan.string is not None:
        return ""
    base = indent_at(source, line[0][2])
    step = "\t" if "\t" in base else STEP
    last = indent_at(source, line[-1][2])
    if scan.brackets:
        return last + step if scan.brackets[-1] == len(scan.tokens) - 1 else last
    if source.rstrip(" \t\r\n").endswith("\\"):
        return base + step if last == base else last
    if line[-1][1] == ":":
        return base + step
    return base[: -len(step)] if line[0][1] in LEAVING else base


def indent_at(source, at):
    """The white space that the line of a position begins with."""
    start = max(source.rfind("\n", 0, at), source.rfind("\r", 0, at)) + 1
    end = start
    while source[end : end + 1] in (" ", "\t", "\f"):
        end += 1
    return source[start:end].replace("\f", "")
