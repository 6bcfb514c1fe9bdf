"""The process that runs one reply. It is trusted until the reply's first line runs, and not afterwards.

It takes its job from the grader over descriptor 3, answers one request at a time, and knows arguments only: expected
values are compared elsewhere. Frames in both directions: one byte of kind, four bytes of length, the payload.

    grader -> child                                     child -> grader
    J  marshal of the job                               F  the test function's kind, or E: it does not compile;
                                                        then L loaded, or E
    C  marshal of (arguments, keywords, conversion)     V  the value, spelled by `encode`, or E
    T  call the reply's test function                   V  it came back, or E
    A  name of an attribute of the solution object      V  or E
    Q  finish                                           Q  after stdout was flushed

The payload of E is the exception's type and text, for people to read.
"""

from __future__ import annotations

import ast
import builtins
import marshal
import os
import sys
import types

import encode

JOB = 3
_ERROR_CHARS = 300


def read_frame() -> tuple[bytes, bytes]:
    """The next request. Raises EOFError when the grader is gone."""
    header = _read(5)
    return header[:1], _read(int.from_bytes(header[1:], "big"))


def write_frame(kind: bytes, payload: bytes = b"") -> None:
    data = memoryview(kind + len(payload).to_bytes(4, "big") + payload)
    while data:
        data = data[os.write(JOB, data) :]


def serve() -> None:
    """Load the reply and answer requests until the last one."""
    _, payload = read_frame()
    job = marshal.loads(payload)
    try:
        tree, facts = prepare(job)
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        write_frame(b"E", _describe(error))
        return
    write_frame(b"F", facts)
    try:
        helpers = _namespace("setup")
        exec(compile(job["setup"], "<setup>", "exec", dont_inherit=True), helpers)
        space = _namespace("__main__")
        space.update({k: v for k, v in helpers.items() if not k.startswith("__")})
        exec(compile(tree, "<reply>", "exec", dont_inherit=True), space)
    except BaseException as error:
        write_frame(b"E", _describe(error))
        return
    write_frame(b"L")
    while True:
        kind, payload = read_frame()
        if kind == b"Q":
            try:
                sys.stdout.flush()
            finally:
                write_frame(b"Q")
            return
        try:
            answer = _answer(kind, payload, job, space, helpers)
        except BaseException as error:
            write_frame(b"E", _describe(error))
        else:
            write_frame(b"V", answer)


def prepare(job: dict) -> tuple[ast.Module, bytes]:
    """The program's syntax tree and what is known of its test function: `none`, `function`, `method`, or `same`.

    `same`: the one that the prompt showed, white space and comments aside.
    With `graft`, the program is the job's source with only the test function (and the imports) of the grafted reply.
    """
    tree = ast.parse(job["source"])
    compile(tree, "<reply>", "exec", dont_inherit=True)
    name, graft = job["test_function"], job["graft"]
    if name is None:
        return tree, b"none"
    donor = tree if graft is None else ast.parse(graft)
    where, function = find_function(donor, name)
    if graft is not None and function is not None:
        imports = [node for node in donor.body if isinstance(node, ast.Import | ast.ImportFrom)]
        tree.body[:0] = imports
        classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Solution"]
        (classes[-1].body if where == b"method" and classes else tree.body).append(function)
    if function is not None and job["shown"] is not None:
        shown = find_function(ast.parse(job["shown"]), name)[1]
        if shown is not None and ast.dump(shown) == ast.dump(function):
            return tree, b"same"
    return tree, where


def find_function(tree: ast.Module, name: str) -> tuple[bytes, ast.stmt | None]:
    """The last definition of `name`: a function or an assignment at top level, or a method of class Solution.

    One with a `__main__` guard in it counts as absent, as published.
    """
    found: tuple[bytes, ast.stmt | None] = (b"none", None)
    for node in tree.body:
        if _defines(node, name):
            found = (b"function", node)
        elif isinstance(node, ast.ClassDef) and node.name == "Solution" and found[0] != b"function":
            for method in node.body:
                if isinstance(method, ast.FunctionDef) and method.name == name:
                    found = (b"method", method)
    if found[1] is not None and any(isinstance(n, ast.Constant) and n.value == "__main__" for n in ast.walk(found[1])):
        return b"none", None
    return found


def _defines(node: ast.stmt, name: str) -> bool:
    """Whether a statement is a definition of, or an assignment to, `name`."""
    if isinstance(node, ast.Assign):
        return any(isinstance(target, ast.Name) and target.id == name for target in node.targets)
    return isinstance(node, ast.FunctionDef) and node.name == name


def _answer(kind: bytes, payload: bytes, job: dict, space: dict, helpers: dict) -> bytes:
    if kind == b"C":
        arguments, keywords, conversion = marshal.loads(payload)
        arguments = [_build(a, helpers) for a in arguments]
        keywords = {name: _build(a, helpers) for name, a in keywords.items()}
        owner, method = job["entry"]
        target = getattr(space[owner](), method) if owner else space[method]
        value = target(*arguments, **keywords)
        if conversion == "list_node":
            value = encode.list_values(value)
        elif conversion == "tree_node":
            value = encode.tree_values(value)
        return encode.encode(value)
    if kind == b"T":
        name = job["test_function"]
        target = space[name] if name in space else getattr(space["Solution"](), name)
        target()
        return b""
    if kind == b"A":
        owner = job["entry"][0] or "Solution"
        return encode.encode(getattr(space[owner](), payload.decode()))
    raise ValueError(f"unknown request {kind!r}")


def _build(argument: tuple, helpers: dict) -> object:
    """An argument: `("v", value)`, or `("h", helper, arguments)` to be built by a function of the setup code."""
    if argument[0] == "v":
        return argument[1]
    return helpers[argument[1]](*[_build(a, helpers) for a in argument[2]])


def _namespace(name: str) -> dict:
    """The globals of a new module of that name, registered so that dataclasses and type hints find it."""
    module = types.ModuleType(name)
    module.__dict__["__builtins__"] = builtins
    sys.modules[name] = module
    return module.__dict__


def _describe(error: BaseException) -> bytes:
    try:
        text = f"{type(error).__name__}: {error}"
    except BaseException:
        text = "an exception that cannot be described"
    return text[:_ERROR_CHARS].encode("utf-8", "replace")


def _read(size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = os.read(JOB, size - len(data))
        if not part:
            raise EOFError("the grader closed the connection")
        data += part
    return data
