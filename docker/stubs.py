"""Replace a shared library by a stub: the same name and symbols, but functions that do nothing and return one number.

For libraries that others are linked with and do not call: PyPI's torch for Linux cannot be imported without those of CUDA (2.15), but calls
none of them where there is no GPU. Needs binutils.
"""

import platform
import re
import subprocess
import tempfile
from pathlib import Path

_RETURN = {"x86_64": "movl ${}, %eax\nret", "aarch64": "mov x0, #{}\nret"}
_SYMBOL = re.compile(r"[0-9a-f]+ (?:(?P<size>[0-9a-f]+) )?(?P<kind>[A-Za-z]) (?P<name>[^@\s]+)(?:@@?(?P<version>\S+))?")
_OBJECTS = "BbDdRrVSsGgu"


def write_stub(library: Path, stub: Path, *, symbols: str = ".*", returns: int = 1) -> None:
    """Write a stub of `library`, with its symbols that match `symbols`, their versions and its name for the loader.

    Of a library in C++, name only the symbols that others need: the loader may take its copies of templates for those of the others. The
    functions return `returns`: for CUDA 1 is an error; for a function that returns an object 0 is none.
    """
    listing = _run("nm", "-D", "-S", "--defined-only", "--with-symbol-versions", str(library))
    name = re.search(r"\(SONAME\).*\[(.*)\]", _run("readelf", "-dW", str(library)))
    assembly, versions = [".text"], dict[str, list[str]]()
    for symbol in map(_SYMBOL.fullmatch, listing.splitlines()):
        if symbol is None or symbol["kind"] == "A" or not re.fullmatch(symbols, symbol["name"]):
            continue
        assembly.append(f".globl {symbol['name']}\n" + _define(symbol["name"], symbol["kind"], int(symbol["size"] or "8", 16), returns))
        if symbol["version"]:
            versions.setdefault(symbol["version"], []).append(symbol["name"])
    assembly.append('.section .note.GNU-stack,"",%progbits\n')
    stub.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        source, script, compiled = (Path(folder) / file for file in ("stub.s", "versions", "stub.o"))
        source.write_text("\n".join(assembly))
        script.write_text("".join(f"{version} {{ global: {'; '.join(names)}; }};\n" for version, names in versions.items()))
        _run("as", "-o", str(compiled), str(source))
        script_options = ["--version-script", str(script)] if versions else []
        _run("ld", "-shared", "-soname", name[1] if name else library.name, *script_options, "-o", str(stub), str(compiled))


def _define(name: str, kind: str, size: int, returns: int) -> str:
    if kind in _OBJECTS:
        return f".bss\n.type {name}, @object\n.size {name}, {size}\n.balign 16\n{name}: .zero {max(size, 8)}\n.text"
    return f".type {name}, @function\n{name}:\n{_RETURN[platform.machine()].format(returns)}"


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
