"""The page with all that it shows in one file, which needs no server."""

from __future__ import annotations

import base64
import re
from importlib.resources import files

_MODULES = ("format", "state", "stream", "lanes", "charts", "tables", "story", "player", "main")
"""In an order in which each comes behind those that it imports."""
_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'"
_IMPORT = re.compile(r'^import \{ ([^}]*) \} from "\./(\w+)\.js";$', re.MULTILINE)
_EXPORT = re.compile(r"^export ((?:async )?function|class|const|let) (\w+)", re.MULTILINE)
_LINKED = re.compile(
    r'^<(?:link|script) [^>]*(?:href|src)="/dashboard/files/([\w.]+)"[^>]*>(?:</script>)?$', re.MULTILINE
)


def page_with(data: bytes) -> bytes:
    """Return the page. data: its frames, as JSON in gzip."""
    folder = files("longspan.entrypoints.dashboard") / "static"

    def read(name: str) -> str:
        return (folder / name).read_text("utf-8")

    icon = "data:image/svg+xml;base64," + base64.b64encode(read("icon.svg").encode()).decode()
    bundle = "\n".join(_as_object(name, read(f"{name}.js")) for name in _MODULES)

    def inlined(found: re.Match[str]) -> str:
        name = found[1]
        match name.rpartition(".")[2]:
            case "css":
                return f"<style>{read(name)}</style>"
            case "svg":
                return f'<link rel="icon" href="{icon}">'
            case _:
                kind = ' type="module"' if name == "main.js" else ""
                return f"<script{kind}>{bundle if name == 'main.js' else read(name)}</script>"

    head = f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
    page = read("index.html").replace('data-mode="live"', 'data-mode="file"').replace("<head>", f"<head>\n{head}")
    page = _LINKED.sub(inlined, page).replace('src="/dashboard/files/icon.svg"', f'src="{icon}"')
    held = f'<script type="text/plain" id="log">{base64.b64encode(data).decode()}</script>'
    return page.replace("</body>", f"{held}\n</body>").encode()


def _as_object(name: str, text: str) -> str:
    """A module as an object of what it exports, which others take from there."""
    exported = ", ".join(found[1] for found in _EXPORT.findall(text))
    text = _IMPORT.sub(r"const { \1 } = module_\2;", text)
    text = _EXPORT.sub(r"\1 \2", text)
    return f"const module_{name} = (() => {{\n{text}\nreturn {{ {exported} }};\n}})();"
