# Display data: what objects offer beside text, as IPython has it; figures of matplotlib. A part of python.py, loaded at first use;
# names not defined here are that file's.
from _json import encode_basestring as quoted
from _thread import RLock
from binascii import b2a_base64

OBJECT_LIMIT_BYTES = 8 << 20
EXECUTION_LIMIT_BYTES = 16 << 20
WARNING_LIMIT_CHARS = 200
# Method, type of what it returns, and whether that is bytes.
METHODS = (
    ("_repr_html_", "text/html", False),
    ("_repr_markdown_", "text/markdown", False),
    ("_repr_latex_", "text/latex", False),
    ("_repr_svg_", "image/svg+xml", False),
    ("_repr_png_", "image/png", True),
    ("_repr_jpeg_", "image/jpeg", True),
    ("_repr_pdf_", "application/pdf", True),
    ("_repr_json_", "application/json", False),
    ("_repr_javascript_", "application/javascript", False),
)
# Held while it is looked whether the execution still goes on and a message is written. Only then may its reply be sent.
repl.door = RLock()


def display(objects, options):
    for value in objects:
        if options.get("raw") and isinstance(value, dict):
            show(dict(value), value)
        else:
            show(bundle_of(value), value)


def show(bundle, value):
    """Sends a bundle, MIME type → content, where there is somebody to send it to; else prints the object's text."""
    if not bundle:
        return
    try:
        message = to_json(bundle)
    except Exception as error:
        return warn("Cannot display", value, error)
    late = None
    with repl.door if getpid() == repl.pid else RLock():
        # In a fork, a thread that outlived its execution, or a signal's handler amid a message.
        if getpid() != repl.pid or repl.current is None or repl.door._recursion_count() > 1:
            print(bundle.get("text/plain", describe(value).decode()))
            return
        if len(message) > OBJECT_LIMIT_BYTES:
            return complain(value, "one object", OBJECT_LIMIT_BYTES, len(message))
        if repl.shown_bytes + len(message) > EXECUTION_LIMIT_BYTES:
            return complain(value, "one execution", EXECUTION_LIMIT_BYTES, repl.shown_bytes + len(message))
        repl.shown_bytes += len(message)
        late = repl.send_message(DISPLAY, message)
    if late is not None:
        raise late


def complain(value, what, limit, got):
    text = f"display data of {what} is at most {limit} bytes, got {got}"
    print(f"Cannot display {type(value).__name__}: {text}", file=sys.stderr)


def warn(what, value, error):
    """One line about an object's method that failed."""
    try:
        text = " ".join(str(error).split())[:WARNING_LIMIT_CHARS]
    except Exception:
        text = ""
    print(f"{what} {type(value).__name__}: {type(error).__name__}{text and ': '}{text}", file=sys.stderr)


def to_json(bundle):
    """The bundle as JSON; what cannot be encoded, half a surrogate pair, stays the escape that JSON has for it."""
    entries = []
    for kind, content in bundle.items():
        if isinstance(content, (bytes, bytearray)):
            content = quoted(b2a_base64(content, newline=False).decode())
        elif isinstance(content, str):
            content = quoted(str(content))
        else:
            content = library("json").dumps(content, allow_nan=False)
        entries.append(f"{quoted(str(kind))}:{content}")
    return f"{{{','.join(entries)}}}".encode("utf-8", "backslashreplace")


def bundle_of(value):
    """All that a value offers, MIME type → content. A method that raises is reported, and the rest counts."""
    bundle = {}
    if is_figure(value):
        bundle.update(picture_of(value))
    elif is_rich(value):
        bundle.update(call(value, "_repr_mimebundle_", dict, include=None, exclude=None) or {})
        for name, kind, is_binary in METHODS:
            if kind not in bundle:
                wanted = object if kind == "application/json" else (bytes, bytearray, str) if is_binary else str
                content = call(value, name, wanted)
                if content is not None:
                    bundle[kind] = content
    return {"text/plain": describe(value).decode(), **bundle}


def call(value, name, wanted, **options):
    """What a method of the value's class returns, None without one; methods may return a pair of content and metadata."""
    if not any(name in vars(kind) for kind in type(value).__mro__):
        return None
    try:
        method = getattr(value, name)
        content = method(**options) if method is not None else None
        if isinstance(content, tuple) and len(content) == 2:
            content = content[0]
        if content is not None and not isinstance(content, wanted):
            raise TypeError(f"it returned {type(content).__name__}")
        if name == "_repr_json_" and content is not None:
            to_json({"application/json": content})
        return content
    except Exception as error:
        return warn(f"Cannot use {name} of", value, error)


def adapt(module):
    """Called when a module that shows things has been imported."""
    if module.__name__ == "matplotlib.pyplot":
        module.show = show_open_figures
    else:
        module.display = display_function
        module.publish_display_data = publish_display_data


def show_open_figures(*args, **options):
    """Shows the open figures and closes them."""
    show_figures()


def display_function(*objects, **options):
    """Shows objects with all they offer: HTML, images, text."""
    display(objects, options)


def publish_display_data(data, *args, **options):
    """Shows a dictionary, MIME type → content."""
    show(dict(data), data)


for function in (show_open_figures, display_function, publish_display_data):
    function.__module__ = "builtins"


def is_figure(value):
    figure = modules.get("matplotlib.figure")
    kind = getattr(figure, "Figure", None)
    return isinstance(kind, type) and issubclass(type(value), kind)


def picture_of(figure):
    pylab = modules.get("matplotlib._pylab_helpers")
    for number, manager in list(pylab.Gcf.figs.items()) if pylab else ():
        if manager.canvas.figure is figure:
            pylab.Gcf.destroy(number)  # Shown now: not again at the end.
    if not (figure.axes or figure.lines or figure.texts or figure.images):
        return {}  # Nothing in it.
    buffer = BytesIO()
    try:
        figure.savefig(buffer, format="png", bbox_inches="tight")
    except Exception as error:
        warn("Cannot draw", figure, error)
        return {}
    return {"image/png": buffer.getvalue()}


def show_figures():
    """Shows matplotlib's open figures as images and closes them; one with nothing in it is only closed."""
    try:
        managers = modules["matplotlib._pylab_helpers"].Gcf.figs.values()
        figures = [manager.canvas.figure for manager in managers]
    except (AttributeError, KeyError):
        return  # Something else by that name.
    for figure in figures:
        bundle = {"text/plain": describe(figure).decode(), **picture_of(figure)}
        if "image/png" in bundle:
            show(bundle, figure)
