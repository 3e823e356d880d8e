"""What MkDocs does not do by itself: the pages that are made of the code, and links that leave docs/.

``make docs`` loads this file (``hooks:`` in mkdocs.yml). Commands, recipe keys and the names of the Python reference
come from the package, so that nothing is typed twice. The functions that make text need no MkDocs; tests/test_site.py
calls them.
"""

import importlib
import json
import posixpath
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
#: Packages whose public names the Python reference lists after those of ``excite`` itself.
PACKAGES = ("explain", "report", "compare", "datacheck", "export", "grafting", "twins", "gates")
#: A Markdown link or image: the text with its brackets, the target, and a fragment.
LINK = re.compile(r"(\]\()([^)\s#]+)(#[^)\s]*)?(\))")
CODE = re.compile(r"(```.*?```|`[^`\n]*`)", re.DOTALL)


# ---------------------------------------------------------------- pages made of the code


def commands_text() -> str:
    """A section for each command: what it does, examples, arguments and options."""
    import typer

    from excite.cli import app
    from excite.command_help import leaves

    return "\n".join(_command(name, command) for name, command in leaves(typer.main.get_command(app)).items())


def _command(name: str, command: Any) -> str:
    lines = [f"## excite {name}", ""]
    examples: list[str] = []
    for line in (part.strip() for part in (command.help or "").replace("\b", "").splitlines()):
        if line.startswith("excite "):
            examples.append(line)
        elif line and not line.startswith("Examples"):
            lines += [_plain(line), ""]
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option" and not getattr(p, "hidden", False)]
    words = [p.metavar or p.name.upper() for p in arguments]
    lines += ["```text", " ".join(["excite", name, *words, *(["[OPTIONS]"] if options else [])]), "```", ""]
    if examples:
        lines += ["```sh", *examples, "```", ""]
    rows = [(f"`{_cell(p.metavar or p.name.upper())}`", _plain(p.help or "")) for p in arguments]
    rows += [(_option(p), _plain(_with_default(p))) for p in options]
    lines += ["| argument or option | meaning |", "|---|---|", *(f"| {what} | {text} |" for what, text in rows), ""]
    return "\n".join(lines)


def _option(option: Any) -> str:
    names = ", ".join(f"`{name}`" for name in [*option.opts, *option.secondary_opts])
    return names if option.is_flag or not option.metavar else f"{names} `{_cell(option.metavar)}`"


def _with_default(option: Any) -> str:
    shown = option.show_default and not option.is_flag and option.default not in (None, "", [], ())
    return f"{option.help or ''} Default: {option.default}." if shown else option.help or ""


def recipe_keys_text() -> str:
    """A table for each section of a recipe: key, type and limits, default, meaning."""
    from excite.recipe import json_schema

    schema = json.loads(json_schema())
    kinds = schema["$defs"]
    text = []
    for section, entry in schema["properties"].items():
        kind = kinds.get(entry.get("$ref", "").rpartition("/")[2])
        if kind is None:
            text += [f"`{section}`: {_plain(entry['description'])}.", ""]
        else:
            text += [f"## {section}", "", _plain(kind["description"]), "", *_keys(section, kind, kinds), ""]
    return "\n".join(text)


def _keys(section: str, kind: dict[str, Any], kinds: dict[str, Any]) -> list[str]:
    rows = ["| key | value | default | meaning |", "|---|---|---|---|"]
    for key, entry in kind["properties"].items():
        default = f"`{_cell(json.dumps(entry['default']))}`" if "default" in entry else "required"
        meaning = _plain(entry.get("description", ""))
        rows.append(f"| `{section}.{key}` | {_cell(_values(entry, kinds))} | {default} | {meaning} |")
    return rows


def _values(entry: dict[str, Any], kinds: dict[str, Any]) -> str:
    """What a value may be, in words, from its JSON schema."""
    if "$ref" in entry:
        inner = kinds[entry["$ref"].rpartition("/")[2]]
        return "mapping: " + ", ".join(f"`{key}`" for key in inner["properties"])
    if "anyOf" in entry:
        return " or ".join(_values(each, kinds) for each in entry["anyOf"])
    if "const" in entry or "enum" in entry:
        values = [entry["const"]] if "const" in entry else entry["enum"]
        return ", ".join(f"`{value}`" for value in values)
    name = {"boolean": "true or false", "string": "text", "array": "list", "object": "mapping"}.get(
        entry.get("type", ""), entry.get("type", "any")
    )
    limits = [
        f"{sign} {entry[word]:g}"
        for word, sign in (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("exclusiveMaximum", "<"))
        if word in entry and entry[word] < 1 << 31
    ]
    return " ".join([name, ", ".join(limits)]).strip()


def python_text() -> str:
    """A mkdocstrings directive for each public name, ``excite``'s own first."""
    text = []
    for package in ("excite", *(f"excite.{name}" for name in PACKAGES)):
        text += [f"## {package}", ""]
        for name in sorted(importlib.import_module(package).__all__):
            if not _is_directly_there(package, name):
                text += [f"::: {package}.{name}", ""]
    return "\n".join(text)


def _is_directly_there(package: str, name: str) -> bool:
    """Whether ``excite`` itself lists the same object, so that it is documented already."""
    return package != "excite" and name in importlib.import_module("excite").__all__


def _plain(text: str) -> str:
    """A sentence for a table's cell, on one line."""
    return _cell(" ".join(text.split()))


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


#: Pages with a line `<!-- made by docs/hooks.py -->`, in whose place a text goes.
MADE = {
    "reference/commands.md": commands_text,
    "reference/recipe-keys.md": recipe_keys_text,
    "reference/python.md": python_text,
}
PLACE = "<!-- made by docs/hooks.py -->"


# ---------------------------------------------------------------- links that leave docs/


def links(text: str) -> list[str]:
    """The targets of links and images to files, code left out."""
    bare = CODE.sub("", text)
    return [target for _, target, _, _ in LINK.findall(bare) if not re.match(r"[a-z]+:|//", target)]


def repository_path(page: str, target: str) -> str:
    """Where a link on a page leads; both are paths below the repository's root."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(page), target))


def site_path(path: str) -> str:
    """Where a file of the repository stands in the site."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if path == "README.md":
        return "index.md"
    if path.endswith(".md"):
        return "project/" + path.replace("/", "-").lower()
    return f"files/{path}"


def relinked(text: str, page: str) -> str:
    """The text of a page of the repository with its links as they are in the site."""
    here = posixpath.dirname(site_path(page))

    def one(found: re.Match[str]) -> str:
        before, target, fragment, after = found.groups()
        if re.match(r"[a-z]+:|//", target):
            return found[0]
        there = site_path(repository_path(page, target))
        return f"{before}{posixpath.relpath(there, here or '.')}{fragment or ''}{after}"

    return "".join(part if CODE.fullmatch(part) else LINK.sub(one, part) for part in CODE.split(text))


def outside() -> list[str]:
    """Files outside docs/ that pages link to, and pages that these link to; paths below the repository's root."""
    todo = ["README.md", *(p.relative_to(ROOT).as_posix() for p in DOCS.rglob("*.md"))]
    found: list[str] = []
    while todo:
        page = todo.pop()
        for target in links((ROOT / page).read_text(encoding="utf-8")):
            path = repository_path(page, target)
            if not path.startswith("docs/") and path not in found and (ROOT / path).is_file():
                found.append(path)
                if path.endswith(".md"):
                    todo.append(path)
    return sorted({*found, "README.md"})


# ---------------------------------------------------------------- what MkDocs calls


def on_files(files: Any, config: Any) -> Any:
    """The README as the first page, and files outside docs/ that are linked."""
    from mkdocs.structure.files import File

    for path in outside():
        if path.endswith(".md"):
            text = relinked((ROOT / path).read_text(encoding="utf-8"), path)
            files.append(File.generated(config, site_path(path), content=text))
        else:
            files.append(File.generated(config, site_path(path), abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Generated text in its place, and links that leave docs/."""
    source = page.file.src_uri
    if source in MADE:
        assert PLACE in markdown, source
        return markdown.replace(PLACE, MADE[source]())
    is_ours = (DOCS / source).is_file()
    return relinked(markdown, f"docs/{source}") if is_ours else markdown


def on_page_content(html: str, **_: Any) -> str:
    """Docstrings name things in Sphinx's way (:func:`name`), which is only the name here."""
    return re.sub(r":(?:class|func|meth|mod|attr|data):<code>~?", "<code>", html)


def on_post_build(config: Any) -> None:
    """The site opens without a network: nothing in it is loaded from elsewhere."""
    from mkdocs.exceptions import PluginError

    loaded = re.compile(r"<(?:script|img|iframe)[^>]*\ssrc=\"?(?:https?:)?//|<link[^>]*rel=\"?stylesheet[^>]*https?://")
    for path in Path(config.site_dir).rglob("*.html"):
        if remote := loaded.search(path.read_text(encoding="utf-8")):
            raise PluginError(f"{path}: loads from elsewhere: {remote[0]}")
