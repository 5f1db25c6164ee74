# Completion of import statements: a part of python.py, loaded when somebody types one; names not defined here are that file's.
# Nothing is imported: modules are found by their files, and what is in a module that is not loaded is read in its source.
MODULE_LIMIT_BYTES = 1 << 20


def candidates(statement, word):
    """What may follow, `statement` being the tokens from `import` or `from` on and `word` what is typed of the next."""
    first, *texts = [text for _, text, _ in statement]
    choose = part("complete")["chosen"]
    last = texts[-1] if texts else ""
    if first == "from" and "import" in texts:
        if last not in ("import", "(", ","):
            return []
        module = "".join(texts[: texts.index("import")])
        return [] if module[:1] == "." else choose([*names_in(module), *submodules(module)], word)
    while texts and texts[-1] not in (".", ","):
        if first == "from" and texts[0] != ".":
            return choose(["import"], word)
        return []
    package = []
    for text in reversed(texts[:-1] if last == "." else []):
        if text == ",":
            break
        package.insert(0, text)
    return choose(submodules("".join(package)), word)


def submodules(package):
    """Names of the modules in a package, or of all top-level modules."""
    found = set()
    if not package:
        found.update(sys.builtin_module_names, sys.stdlib_module_names)
    for directory in directories(package):
        found.update(modules_in(directory))
    return found


def directories(package):
    """Where the modules of a package lie."""
    loaded = modules.get(package)
    if package and loaded is not None:
        own = part("complete")["own_names"](loaded).get("__path__")
        return [entry for entry in own if type(entry) is str] if type(own) is list else []
    inner = package.replace(".", "/")
    return [f"{entry or '.'}/{inner}" for entry in list(sys.path) if type(entry) is str]


def modules_in(directory):
    try:
        with posix.scandir(directory) as entries:
            for entry in entries:
                stem, dot, ending = entry.name.partition(".")
                if ending == "py" or ending.endswith("so"):
                    if stem != "__init__":
                        yield stem
                elif not dot and entry.is_dir() and is_file(f"{entry.path}/__init__.py"):
                    yield stem
    except OSError:
        pass  # No such directory.


def is_file(path):
    try:
        posix.stat(path)
        return True
    except OSError:
        return False


def names_in(module):
    """Names at the top level of a module."""
    loaded = modules.get(module)
    if loaded is not None:
        return list(part("complete")["own_names"](loaded))
    package, _, name = module.rpartition(".")
    for directory in directories(package):
        for path in (f"{directory}/{name}/__init__.py", f"{directory}/{name}.py"):
            if is_file(path):
                return names_in_source(path)
    return []


def names_in_source(path):
    warnings = library("warnings")
    try:
        with FileIO(path) as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = compile(file.read(MODULE_LIMIT_BYTES), path, "exec", ONLY_AST, True)
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    found = []
    for statement in tree.body:
        if hasattr(statement, "name"):
            found.append(statement.name)
        for target in getattr(statement, "targets", [getattr(statement, "target", None)]):
            found.append(getattr(target, "id", None))
        if type(statement).__name__ in ("Import", "ImportFrom"):
            found += [alias.asname or alias.name for alias in statement.names]
    return found
