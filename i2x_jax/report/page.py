"""The report as one HTML file that needs nothing else: template, data, charts library and pictures in it.

Whatever comes from a data set is text: the template escapes it, the data are JSON in which no tag can end, the script
only ever sets text, and the page's content security policy lets no script run but those written here, and nothing be
fetched.
"""

import base64
import hashlib
import importlib.resources
import json
from typing import Any

import jinja2
import vl_convert
from markupsafe import Markup

from i2x_jax.config import printable

TEMPLATES = importlib.resources.files("i2x_jax.report") / "templates"
# What could end a script element, or a line of a script, must not stand in one.
UNSAFE = {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}

# A page that opens at a view shows nothing before it is there: what was painted first would jump.
EARLY = 'if (/^#\\w+=/.test(location.hash)) document.documentElement.className = "linking";'


def embedded(value: Any) -> Markup:
    """JSON that may stand inside a script element."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    # Lone surrogates cannot be written to a file; escaped they can.
    return Markup(text.translate(UNSAFE).encode("utf-8", "backslashreplace").decode())


def render(content: dict) -> str:
    """The page.

    Args:
      content: what the template `page.html.j2` reads; its member `data` goes to the script.
    """
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, finalize=_shown, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"percent": _percent, "number": _number, "signed": _signed}
    template = environment.from_string(_read("page.html.j2"))
    scripts = {"early": EARLY, "library": _script(vl_convert.javascript_bundle()), "program": _script(_read("page.js"))}
    # Browsers hash what stands between the tags.
    hashes = " ".join(f"'sha256-{_sha256(text)}'" for text in scripts.values())
    return template.render(
        **{key: value for key, value in content.items() if key != "data"},
        data=embedded(content["data"]),
        style=Markup(_read("page.css")),
        hashes=Markup(hashes),
        **{name: Markup(text) for name, text in scripts.items()},
    )


def _shown(value):
    # What is Markup was made here; any other text may hold a name from the data.
    return printable(value) if type(value) is str else value


def _read(name):
    return (TEMPLATES / name).read_text(encoding="utf-8")


def _script(text):
    if "</script" in text.lower() or "<!--" in text:
        text = text.replace("</script", "<\\/script").replace("<!--", "<\\!--")
    return text.replace("\r\n", "\n").replace("\r", "\n").replace("\0", "\\0")


def _sha256(text):
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _percent(value, digits=2):
    return "–" if value is None else f"{100 * value:.{digits}f} %"


def _number(value, digits=2):
    return "–" if value is None else f"{value:.{digits}f}"


def _signed(value, digits=2):
    return "–" if value is None else f"{value:+.{digits}f}"
