# Tokens of code that is being typed, finished or not: a part of python.py; names not defined here are that file's.
re = library("re")
TOKEN = re.compile(
    r"""(?P<space>[ \t\f]+|\\(?:\r\n|\r|\n)?)|(?P<newline>\r\n|\r|\n)|(?P<comment>\#[^\r\n]*)"""
    r"""|(?P<string>[bBrRuUfFtT]{0,2}(?:'''|\"\"\"|'|"))|(?P<name>[^\W\d]\w*)|(?P<number>\.?\d[\w.]*)|(?P<op>.)""",
    re.S,
)
STRING_STOP = re.compile(r"""[\\'"\r\n{]""")
FIELD_STOP = re.compile(r"""[bBrRuUfFtT]{0,2}(?:'''|\"\"\"|'|")|[][(){}]""")


class Scan:
    """`tokens`: (kind, text, start), newlines only where they end a logical line. `brackets`: indices of the tokens that opened
    what is still open. `string`: of the string that is not ended, its prefix, the start of its content and that of the
    replacement field that is not ended."""

    def __init__(self, source):
        self.tokens = []
        self.brackets = []
        self.string = None
        self.in_comment = False
        at = 0
        while at < len(source) and self.string is None:
            match = TOKEN.match(source, at)
            at = match.end()
            kind = match.lastgroup
            self.in_comment = kind == "comment" and at == len(source)
            if kind == "string":
                at = self.pass_string(source, match.group(), at)
            if kind == "newline" and self.brackets or kind in ("space", "comment"):
                continue
            if self.string is None:
                self.add(kind, match.group(), match.start())

    def add(self, kind, text, start):
        if text in ("(", "[", "{"):
            self.brackets.append(len(self.tokens))
        elif text in (")", "]", "}") and self.brackets:
            self.brackets.pop()
        self.tokens.append((kind, text, start))

    def pass_string(self, source, opening, at):
        prefix = opening.rstrip("'\"").lower()
        end, field = string_end(source, at, opening[len(prefix) :], "f" in prefix or "t" in prefix)
        if end is None:
            self.string = (prefix, at, field)
            return len(source)
        return end

    def lines(self):
        """The tokens of each logical line that has any."""
        line = []
        for token in self.tokens:
            if token[0] != "newline":
                line.append(token)
            elif line:
                yield line
                line = []
        if line:
            yield line


def string_end(source, at, quote, has_fields):
    """Where a string ends: (end, None), or (None, start of the open replacement field or None)."""
    while match := STRING_STOP.search(source, at):
        at = match.start()
        mark = match.group()
        if mark == "\\":
            at += 2
        elif mark == "{" and has_fields and source[at + 1 : at + 2] != "{":
            end = field_end(source, at + 1)
            if end is None:
                return None, at + 1
            at = end
        elif mark == "{":
            at += 2 if has_fields else 1
        elif source.startswith(quote, at):
            return at + len(quote), None
        elif mark in "\r\n" and len(quote) == 1:
            return at, None  # A mistake; the line ends it.
        else:
            at += 1
    return None, None


def field_end(source, at):
    depth = 0
    while match := FIELD_STOP.search(source, at):
        at = match.end()
        mark = match.group()
        if mark in "([{":
            depth += 1
        elif mark in ")]}":
            if depth == 0:
                return at
            depth -= 1
        else:
            prefix = mark.rstrip("'\"").lower()
            if source[match.start() : at].endswith(("'", '"')):
                at, _ = string_end(source, at, mark[len(prefix) :], "f" in prefix or "t" in prefix)
                if at is None:
                    return None
    return None
