# Completion of names: a part of python.py, loaded when somebody types; names not defined here are that file's.
#
# Nothing of the user's runs: names are looked up in the dictionaries of objects and classes, past properties, __getattr__,
# __dir__ and other descriptors written in Python.
from _json import encode_basestring_ascii as quoted

CANDIDATES_LIMIT = 1000
ANSWER_LIMIT_BYTES = 32_000
SOURCE_LIMIT_CHARS = 262_144
WRAPPERS_LIMIT = 10
MISSING = object()
MODULE = type(sys)
BOUND_METHOD = type(repl.serve)
# Attributes of classes that are read by code of the interpreter, and what is called by it.
SLOTS = (type(type.__dict__["__dict__"]), type(FUNCTION.__dict__["__globals__"]))
BUILTIN_CALLABLES = (type(len), type(str.join), type(object.__init__))
mro_of = type.__dict__["__mro__"].__get__
names_of_class = type.__dict__["__dict__"].__get__


def complete(names, source):
    """JSON: from where on (in UTF-16 units) the candidates replace the code, and the candidates."""
    start, candidates = find(names, source) if len(source) <= SOURCE_LIMIT_CHARS else (len(source), ())
    texts = []
    room = ANSWER_LIMIT_BYTES
    for candidate in dict.fromkeys(candidates):
        text = quoted(candidate)
        room -= len(text) + 1
        if room < 0 or len(texts) == CANDIDATES_LIMIT:
            break
        texts.append(text)
    units = len(source[:start].encode("utf-16-le", "surrogatepass")) // 2
    return f'{{"start":{units},"candidates":[{",".join(texts)}]}}'.encode()


def find(names, source):
    scan = part("scan")["Scan"](source)
    tokens = scan.tokens
    if scan.string is not None:
        prefix, start, field = scan.string
        if field is not None:
            inner, candidates = find(names, source[field:])
            return field + inner, candidates
        return complete_string(names, tokens, prefix, start, source[start:])
    end = len(source)
    word = ""
    if tokens and tokens[-1][2] + len(tokens[-1][1]) == end:
        kind, text, at = tokens[-1]
        if kind == "number":
            return end, ()
        if kind == "name":
            word, end = text, at
            tokens.pop()
    if scan.in_comment or (tokens and tokens[-1][0] == "string" and not word and source[-1:] in ("'", '"')):
        return end, ()
    statement = importing(tokens)
    if statement:
        return end, part("imports")["candidates"](statement, word)
    if tokens and tokens[-1][1] == ".":
        chain = chain_before(tokens, len(tokens) - 1)
        value = resolve(names, chain)[0]
        return end, () if value is MISSING else chosen(attributes_of(value), word)
    return end, [*chosen(keyword_arguments(names, scan), word), *chosen(plain_names(names, tokens), word)]


def chosen(candidates, word):
    """Those that begin with `word`, sorted; private ones only when asked for."""
    found = {
        name
        for name in candidates
        if type(name) is str and name.startswith(word) and (word or name[:1] != "_") and name.removesuffix("=").isidentifier()
    }
    return sorted(found, key=lambda name: (name[:1] == "_", name))


def plain_names(names, tokens):
    keyword = library("keyword")
    typed = [text for kind, text, _ in tokens if kind == "name"]
    return [*list(names), *vars(builtins), *keyword.kwlist, *typed]


def importing(tokens):
    """The tokens of the import statement that is being typed, if one is."""
    for index in range(len(tokens) - 1, -1, -1):
        kind, text, _ = tokens[index]
        if kind == "newline" or text == ";":
            return None
        if text in ("import", "from") and kind == "name":
            before = tokens[index - 1][1] if index else "\n"
            if before in ("\n", "\r\n", "\r", ";", ":"):
                return tokens[index:]
    return None


def chain_before(tokens, end):
    """Of `a.b.c` the names that end before a token; of a string its type's; None where something else stands."""
    chain = []
    at = end - 1
    while at >= 0 and tokens[at][0] == "name":
        chain.insert(0, tokens[at][1])
        if at == 0 or tokens[at - 1][1] != ".":
            return chain
        at -= 2
    if at >= 0 and tokens[at][0] == "string":
        return ["bytes" if "b" in tokens[at][1].lower() else "str", *chain]
    return None


def resolve(names, chain):
    """The object that a chain of names means and the one before it, looked up without running anything."""
    if not chain:
        return MISSING, MISSING
    value, holder = names.get(chain[0], MISSING), MISSING
    if value is MISSING:
        value = vars(builtins).get(chain[0], MISSING)
    for name in chain[1:]:
        if value is MISSING:
            break
        value, holder = lookup(value, name), value
    return value, holder


def is_class(value):
    return issubclass(type(value), type)


def classes_of(value):
    return [names_of_class(kind) for kind in mro_of(value)]


def own_names(value):
    """The object's own dictionary."""
    for names in classes_of(type(value)):
        holder = names.get("__dict__")
        if holder is not None:
            own = holder.__get__(value) if type(holder) in SLOTS else None
            return own if issubclass(type(own), dict) else {}
    return {}


def lookup(value, name):
    if is_class(value):
        for names in classes_of(value):
            if name in names:
                return unbound(names[name], None)
    else:
        own = own_names(value)
        if dict.__contains__(own, name):
            return dict.__getitem__(own, name)
    for names in classes_of(type(value)):
        if name in names:
            return unbound(names[name], value)
    return MISSING


def unbound(attribute, value):
    """What stands behind an attribute of a class; MISSING where only running its code would tell."""
    kind = type(attribute)
    if kind in SLOTS:
        try:
            return attribute if value is None else attribute.__get__(value)
        except Exception:
            return MISSING
    if kind in (staticmethod, classmethod):
        return attribute.__func__
    if kind is not FUNCTION and kind not in BUILTIN_CALLABLES and not is_class(attribute) and any("__get__" in names for names in classes_of(kind)):
        return MISSING
    return attribute


def attributes_of(value):
    if is_class(value):
        return {name for names in classes_of(value) for name in names}
    return {*dict.keys(own_names(value)), *(name for names in classes_of(type(value)) for name in names)}


def keyword_arguments(names, scan):
    """`name=` for the parameters of the call that is being typed."""
    tokens = scan.tokens
    if not scan.brackets or tokens[scan.brackets[-1]][1] != "(" or tokens[-1][1] not in ("(", ","):
        return []
    opening = scan.brackets[-1]
    chain = chain_before(tokens, opening)
    if not chain:
        return []
    first = opening - 2 * len(chain) + 1
    if first > 0 and tokens[first - 1][1] in ("def", "class"):
        return []
    given = {tokens[at][1] for at in range(opening, len(tokens) - 1) if tokens[at + 1][1] == "="}
    return [f"{name}=" for name in parameters(*resolve(names, chain)) if name not in given]


def parameters(value, holder):
    """Names that a callable takes as keywords."""
    skipped = 0 if holder is MISSING or is_class(holder) or issubclass(type(holder), MODULE) else 1
    if is_class(value):
        for name in ("__init__", "__new__"):
            made = next((names[name] for names in classes_of(value) if name in names), None)
            if type(made) in (FUNCTION, staticmethod):
                value, skipped = getattr(made, "__func__", made), 1
                break
    for _ in range(WRAPPERS_LIMIT):
        if type(value) is not FUNCTION or "__wrapped__" not in vars(value):
            break
        value = vars(value)["__wrapped__"]
    if type(value) is BOUND_METHOD:
        value, skipped = value.__func__, 1
    if type(value) is FUNCTION:
        code = value.__code__
        positional = code.co_varnames[: code.co_argcount]
        return [
            *positional[max(skipped, code.co_posonlyargcount) :],
            *code.co_varnames[code.co_argcount : code.co_argcount + code.co_kwonlyargcount],
        ]
    if is_class(value) or type(value) in BUILTIN_CALLABLES:
        signature = type.__dict__["__text_signature__"].__get__(value) if is_class(value) else value.__text_signature__
        shown = (signature or "").strip("()").rpartition("/,")[2]
        return [text.partition("=")[0].strip() for text in shown.split(",") if text.strip()[:1] not in ("*", "$")]
    return []


def complete_string(names, tokens, prefix, start, text):
    """Keys of a dictionary, or files."""
    if tokens and tokens[-1][1] == "[":
        chain = chain_before(tokens, len(tokens) - 1)
        value = resolve(names, chain)[0] if chain else MISSING
        if chain:
            if not issubclass(type(value), dict) or "b" in prefix:
                return start, ()
            keys = [key for key in dict.keys(value) if type(key) is str and key.startswith(text)]
            return start, sorted(key for key in keys if key.isprintable() and not {"'", '"', "\\"} & {*key})
    return files(start, text)


def files(start, text):
    if "\n" in text or "\\" in text or "\0" in text:
        return start, ()
    head, slash, tail = text.rpartition("/")
    directory = head + slash
    if directory[:2] == "~/":
        directory = environ.get("HOME", "/") + directory[1:]
    found = []
    try:
        with posix.scandir(directory or ".") as entries:
            for entry in entries:
                name = entry.name
                if name.startswith(tail) and (tail or name[:1] != ".") and name.isprintable() and not {"'", '"', "\\"} & {*name}:
                    found.append(name + "/" if entry.is_dir() else name)
    except OSError:
        pass  # No such directory, or none that may be read.
    return start + len(head + slash), sorted(found)
