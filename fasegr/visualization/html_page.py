"""Reports as one HTML file: sections of text, tables, bars and pictures, that open without a network.

Every part is `markupsafe.Markup`; text that is not is escaped, so names of classes and files may hold any character.
Style, script and pictures are inside the file. Colours follow the reader's light or dark setting, and every picture and
bar has words for those who do not see it.
"""

from __future__ import annotations

import base64
import io
import os
import re
import zlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup
from PIL import Image

from fasegr.utils.files import replacing

__all__ = [
    "INK",
    "Cell",
    "Markup",
    "Section",
    "bar",
    "code",
    "details",
    "facts",
    "gallery",
    "notice",
    "page",
    "paragraph",
    "picture",
    "plot",
    "swatch",
    "table",
    "thousands",
    "write_page",
]


class Section(NamedTuple):
    """A part of a page with a title, which is in the page's contents. body: what the functions below return, or text,
    which becomes a paragraph."""

    title: str
    body: Sequence[Markup | str]


class Cell(NamedTuple):
    """A cell of a table that is shown as `content` and sorted by `key`."""

    content: Markup | str
    key: float | str


def page(title: str, sections: Sequence[Section], lead: Markup | str = "", footer: Markup | str = "") -> str:
    """The whole file. lead: below the title, such as what the page is about and its key figures (`facts`)."""
    anchors = _anchors([section.title for section in sections])
    contents = Markup("").join(
        Markup('<li><a href="#{}">{}</a></li>').format(anchor, section.title)
        for anchor, section in zip(anchors, sections, strict=True)
    )
    body = Markup("").join(
        Markup('<section aria-labelledby="{}"><h2 id="{}">{}</h2>{}</section>\n').format(
            anchor, anchor, section.title, Markup("").join(map(paragraph, section.body))
        )
        for anchor, section in zip(anchors, sections, strict=True)
    )
    navigation = Markup('<nav aria-label="Contents"><ul>{}</ul></nav>').format(contents) if len(sections) > 1 else ""
    whole = _FRAME.format(
        title=title,
        style=_STYLE,
        script=_SCRIPT,
        lead=paragraph(lead),
        navigation=navigation,
        body=body,
        footer=Markup("<footer>{}</footer>").format(footer) if footer else "",
    )
    return str(whole)


def write_page(path: str | os.PathLike, text: str) -> None:
    """Writes a `page`. A reader sees the old file or the whole new one."""
    with replacing(path, "wb") as file:
        file.write(text.encode("utf-8", "replace"))  # names of files may hold bytes that are no text


def paragraph(text: Markup | str) -> Markup:
    """Text as a paragraph; Markup stays what it is."""
    if isinstance(text, Markup):
        return text
    return Markup("<p>{}</p>").format(text) if text else Markup("")


def facts(items: Iterable[tuple[str, str, str]]) -> Markup:
    """Key figures side by side: (label, value, note), the note below in small print or ""."""
    return Markup('<dl class="facts">{}</dl>').format(
        Markup("").join(
            Markup("<div><dt>{}</dt><dd>{}{}</dd></div>").format(
                label, value, Markup("<small>{}</small>").format(note) if note else ""
            )
            for label, value, note in items
        )
    )


def notice(kind: str, title: str, *body: Markup | str) -> Markup:
    """A box that says what is wrong or should be done. kind: "error", "warning", "advice" or "good", also in words."""
    mark, word = _NOTICES[kind]
    return Markup(
        '<div class="notice {}"><p class="head"><span class="mark" aria-hidden="true">{}</span>'
        '<span class="unseen">{}: </span>{}</p>{}</div>'
    ).format(kind, mark, word, title, Markup("").join(map(paragraph, body)))


def code(text: str) -> Markup:
    """Lines as they are typed or stand in a YAML file."""
    return Markup('<pre tabindex="0"><code>{}</code></pre>').format(text)


def details(summary: str, *body: Markup | str) -> Markup:
    """What is only shown when its summary is clicked on."""
    return Markup("<details><summary>{}</summary>{}</details>").format(summary, Markup("").join(map(paragraph, body)))


def table(
    header: Sequence[str], rows: Iterable[Sequence[Cell | Markup | str | float | None]], caption: str = ""
) -> Markup:
    """A table; a click on a column's title sorts it. The first cell of each row is its title.

    Numbers are aligned right and an int has spaces between thousands; None is a dash. Of a `Cell` with a number as its
    key, the same.
    """
    rows = [[value if isinstance(value, Cell) else Cell(value, value) for value in row] for row in rows]
    numeric = [any(_is_number(row[column].key) for row in rows) for column in range(len(header))]
    titles = Markup("").join(
        Markup('<th scope="col"{}><button type="button">{}</button></th>').format(_NUMBER if is_number else "", title)
        for title, is_number in zip(header, numeric, strict=True)
    )
    body = Markup("").join(
        Markup("<tr>{}</tr>\n").format(
            Markup("").join(
                _cell(cell, Markup("td") if column else Markup('th scope="row"'), is_number)
                for column, (cell, is_number) in enumerate(zip(row, numeric, strict=True))
            )
        )
        for row in rows
    )
    return Markup(
        '<div class="wide" role="region" aria-label="{}" tabindex="0"><table>{}<thead><tr>{}</tr></thead>'
        "<tbody>{}</tbody></table></div>"
    ).format(caption or header[0], Markup("<caption>{}</caption>").format(caption) if caption else "", titles, body)


def _is_number(key: Any) -> bool:
    return isinstance(key, int | float | np.number) and not isinstance(key, bool)


def _cell(cell: Cell, tag: Markup, is_number: bool) -> Markup:
    content, key = cell
    if content is None:
        content, key = "–", ""
    elif isinstance(content, int | np.integer):
        content = thousands(int(content))
    elif isinstance(content, float | np.floating):
        content = f"{content:.4g}"
    return Markup('<{}{} data-key="{}">{}</{}>').format(
        tag, _NUMBER if is_number else "", key, content, Markup(tag.split()[0])
    )


def thousands(count: int) -> str:
    """12 345 678, with spaces that do not break."""
    return f"{count:,}".replace(",", "\u202f")


def bar(share: float, text: str, color: Sequence[int] | None = None) -> Cell:
    """A cell with a bar of `share`, 0 to 1, of its width beside its text; sorted by the share. color: RGB of 0..255."""
    fill = Markup("background:rgb({},{},{});").format(*map(int, color)) if color is not None else Markup("")
    width = 100 * min(max(float(share), 0.0), 1.0)
    content = Markup(
        '<span class="bar"><span class="track" aria-hidden="true"><span style="{}width:{}%"></span></span>{}</span>'
    ).format(fill, f"{width:.2f}", text)
    return Cell(content, float(share))


def swatch(color: Sequence[int], text: str) -> Cell:
    """A cell of a name behind a patch of its colour, RGB of 0..255; sorted by the name."""
    return Cell(
        Markup('<span class="swatch" aria-hidden="true" style="background:rgb({},{},{})"></span>{}').format(
            *map(int, color), text
        ),
        text,
    )


def picture(
    image: Image.Image | np.ndarray, alt: str, caption: Markup | str = "", *, lossless: bool = False, quality: int = 82
) -> Markup:
    """An image, PIL's or uint8 (H, W, 3), inside the file: JPEG, or PNG if `lossless` (drawings, maps of few colours).

    alt: what it shows, in words. It is shown at most at its own size.
    """
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    data = io.BytesIO()
    if lossless:
        image.save(data, "PNG", optimize=True)
    else:
        image.convert("RGB").save(data, "JPEG", quality=quality, optimize=True, progressive=True)
    source = f"data:image/{'png' if lossless else 'jpeg'};base64,{base64.b64encode(data.getvalue()).decode()}"
    tag = Markup('<img src="{}" alt="{}" width="{}" height="{}" loading="lazy">').format(
        source, alt, image.width, image.height
    )
    return _with_caption(tag, caption)


def gallery(pictures: Iterable[Markup], least_width: int = 260) -> Markup:
    """Pictures side by side, as many as there is room for at `least_width` pixels each."""
    return Markup('<div class="gallery" style="--least:{}px">{}</div>').format(least_width, Markup("").join(pictures))


def plot(
    draw: Callable[..., None], alt: str, caption: Markup | str = "", *, size: tuple[float, float] = (7.2, 3.2), **grid
) -> Markup:
    """A plot by matplotlib, as SVG inside the page. alt: what it shows, in words. size: width and height in inches.

    draw: called with all axes, one unless `grid` (nrows, ncols, sharex, ... of `Figure.subplots`) asks for more.
    What is drawn in the colour INK, that of text and lines if nothing else is said, has the page's text colour, in
    light and dark.
    """
    import matplotlib  # slow to import, and not needed by a page without plots
    from matplotlib.figure import Figure

    data = io.StringIO()
    with matplotlib.rc_context(_PLOT_STYLE):
        figure = Figure(figsize=size, layout="constrained")
        draw(*figure.subplots(squeeze=False, **grid).flat)
        figure.savefig(data, format="svg", transparent=True, metadata={"Date": None})
    svg = data.getvalue().replace(INK, "currentColor")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    # Ids are those of one file. In a page they must differ from those of other plots, and few are pointed to.
    used = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', svg))
    prefix = f"plot-{zlib.crc32(svg.encode()):x}-"
    svg = re.sub(r'\sid="([^"]+)"', lambda match: f' id="{prefix}{match[1]}"' if match[1] in used else "", svg)
    svg = re.sub(r'(url\(#|href="#)', rf"\g<1>{prefix}", svg)
    label = Markup('<svg role="img" aria-label="{}"').format(alt)
    return _with_caption(label + Markup(svg.removeprefix("<svg")), caption, "plot")


def _with_caption(content: Markup, caption: Markup | str, kind: str = "") -> Markup:
    text = Markup("<figcaption>{}</figcaption>").format(caption) if caption else ""
    return Markup('<figure class="{}">{}{}</figure>').format(kind, content, text)


def _anchors(titles: Sequence[str]) -> list[str]:
    anchors: list[str] = []
    for title in titles:
        anchor = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") or "section"
        anchors.append(anchor if anchor not in anchors else f"{anchor}-{len(anchors)}")
    return anchors


_NUMBER = Markup(' class="number"')
INK = "#1d2127"  # of text and lines in plots, replaced by the page's own
_PLOT_STYLE = {
    **{f"{key}.color": INK for key in ("text", "xtick", "ytick", "grid")},
    **{f"axes.{key}": INK for key in ("edgecolor", "labelcolor")},
    **{f"axes.spines.{side}": False for side in ("top", "right")},
    **{f"axes.{key}": True for key in ("grid", "axisbelow")},
    **{f"{key}.facecolor": "none" for key in ("axes", "figure")},
    "grid.alpha": 0.13,
    "axes.titlesize": "medium",
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "font.size": 9,
    "svg.fonttype": "none",  # text stays text: in the page's font, and readable by machines
    "svg.hashsalt": "fasegr",
}
_NOTICES = {
    "error": ("✕", "Error"),
    "warning": ("!", "Warning"),
    "advice": ("→", "Advice"),
    "good": ("✓", "In order"),
}

_FRAME = Markup("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<link rel="icon" href="data:,">
<style>{style}</style>
</head>
<body>
<a class="unseen skip" href="#main">Skip to the content</a>
<header><h1>{title}</h1>{lead}</header>
{navigation}
<main id="main">
{body}</main>
{footer}
<script>{script}</script>
</body>
</html>
""")

_STYLE = Markup("""
:root {
  color-scheme: light dark;
  --paper: #fbfbfa; --card: #ffffff; --ink: #1d2127; --soft: #5a626d; --line: #e2e4e8; --track: #e8eaee;
  --accent: #2563b0; --error: #b3261e; --warning: #8a5300; --advice: #1f5fa8; --good: #1b6e3c;
  --shade: 0 1px 2px rgb(20 24 30 / 6%), 0 4px 14px rgb(20 24 30 / 4%);
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14171b; --card: #1c2026; --ink: #e6e9ed; --soft: #a2abb6; --line: #31373f; --track: #2c323a;
    --accent: #7db3f0; --error: #ff9b92; --warning: #f2bd6b; --advice: #8fc0f7; --good: #7fd39d; --shade: none;
  }
}
* { box-sizing: border-box; }
html { scroll-behavior: smooth; scroll-padding-top: 4rem; -webkit-text-size-adjust: 100%; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Noto Sans", sans-serif;
}
header, main, footer { max-width: 72rem; margin: 0 auto; padding: 0 1.25rem; }
header { padding-top: 2.5rem; }
h1 { font-size: clamp(1.6rem, 4vw, 2.3rem); line-height: 1.15; letter-spacing: -.02em; margin: 0 0 .6rem; }
h2 { font-size: 1.35rem; letter-spacing: -.01em; margin: 3rem 0 .8rem; }
h3 { font-size: 1.05rem; margin: 2rem 0 .5rem; }
p, ul { max-width: 46rem; }
p { margin: .5rem 0 .9rem; overflow-wrap: anywhere; }
header p { color: var(--soft); }
a { color: var(--accent); }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; border-radius: 3px; }
nav {
  position: sticky; top: 0; z-index: 2; margin-top: 1.5rem;
  background: color-mix(in srgb, var(--paper) 88%, transparent);
  backdrop-filter: blur(8px); border-block: 1px solid var(--line);
}
nav ul {
  display: flex; gap: 1.4rem; list-style: none; margin: 0 auto; padding: .65rem 1.25rem; max-width: 72rem;
  overflow-x: auto; white-space: nowrap; font-size: .92rem;
}
nav a { color: var(--soft); text-decoration: none; }
nav a:hover { color: var(--accent); text-decoration: underline; }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .8rem; margin: 1.4rem 0; }
.facts div {
  background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: .75rem .95rem;
  box-shadow: var(--shade);
}
.facts dt { color: var(--soft); font-size: .82rem; }
.facts dd { margin: .1rem 0 0; font-size: 1.45rem; font-weight: 620; letter-spacing: -.01em; line-height: 1.25; }
.facts small { display: block; color: var(--soft); font-size: .8rem; font-weight: 400; letter-spacing: 0; }
.notice {
  --tone: var(--advice); background: color-mix(in srgb, var(--tone) 7%, var(--card));
  border: 1px solid color-mix(in srgb, var(--tone) 35%, var(--line)); border-left: 4px solid var(--tone);
  border-radius: 8px; padding: .7rem 1rem; margin: .8rem 0; max-width: 56rem;
}
.notice.error { --tone: var(--error); }
.notice.warning { --tone: var(--warning); }
.notice.good { --tone: var(--good); }
.notice p, .notice ul { margin: .3rem 0; }
.notice .head { font-weight: 620; color: var(--tone); margin: 0; }
.notice .mark { display: inline-block; min-width: 1.35em; font-weight: 700; }
.wide { overflow-x: auto; margin: 1rem 0; background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  box-shadow: var(--shade); }
table { border-collapse: collapse; width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--soft); padding: .7rem .9rem .2rem; font-size: .86rem; }
th, td { padding: .42rem .9rem; text-align: left; border-top: 1px solid var(--line); vertical-align: middle; }
thead th { border-top: 0; border-bottom: 1px solid var(--line); padding: 0; white-space: nowrap; }
tbody th { font-weight: 560; min-width: 9.5rem; }
thead button {
  all: unset; box-sizing: border-box; width: 100%; padding: .6rem .9rem; cursor: pointer; color: var(--soft);
  font-size: .82rem; font-weight: 600;
}
thead button:focus-visible { outline: 2px solid var(--accent); outline-offset: -3px; }
thead button::after { content: "\\2195"; opacity: .35; margin-left: .35em; }
th[aria-sort="ascending"] button::after { content: "\\2191"; opacity: 1; }
th[aria-sort="descending"] button::after { content: "\\2193"; opacity: 1; }
.number { text-align: right; white-space: nowrap; }
thead th.number button { text-align: right; }
tbody tr:hover { background: color-mix(in srgb, var(--accent) 5%, transparent); }
.bar { display: flex; align-items: center; gap: .6rem; min-width: 11rem; justify-content: flex-end; }
.track { flex: 1; height: .5rem; min-width: 4rem; background: var(--track); border-radius: 4px; overflow: hidden; }
.track span { display: block; height: 100%; background: var(--accent); border-radius: 4px; min-width: 1px;
  box-shadow: inset 0 0 0 1px rgb(128 128 128 / 45%); }
.swatch {
  display: inline-block; width: .85em; height: .85em; border-radius: 3px; margin-right: .55em; vertical-align: -.06em;
  box-shadow: inset 0 0 0 1px rgb(128 128 128 / 45%);
}
figure { margin: 1rem 0; }
figure img { display: block; max-width: 100%; height: auto; border-radius: 8px; }
figure.plot { overflow-x: auto; }
figure.plot svg { display: block; min-width: 32rem; max-width: 100%; height: auto; color: var(--ink); }
figure.plot text { fill: currentColor; font-family: inherit !important; }
figcaption { color: var(--soft); font-size: .86rem; margin-top: .4rem; overflow-wrap: anywhere; }
.gallery {
  display: grid; gap: 1rem; margin: 1rem 0;
  grid-template-columns: repeat(auto-fill, minmax(min(var(--least), 100%), 1fr));
}
.gallery figure { margin: 0; }
.gallery img { width: 100%; }
pre {
  background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .8rem 1rem; overflow-x: auto;
  font: .86rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; max-width: 56rem;
}
code { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
details { margin: .8rem 0; }
summary { cursor: pointer; color: var(--accent); }
footer { color: var(--soft); font-size: .86rem; padding-block: 2rem 3rem; margin-top: 3rem; }
.unseen:not(:focus) { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%);
  white-space: nowrap; }
.skip:focus { position: absolute; top: .5rem; left: .5rem; background: var(--card); padding: .5rem 1rem; z-index: 3; }
@media (max-width: 40rem) {
  header { padding-top: 1.4rem; } h2 { margin-top: 2.2rem; } .facts { gap: .6rem; grid-template-columns: 1fr 1fr; }
  .facts dd { font-size: 1.2rem; } th, td { padding: .4rem .6rem; } thead button { padding: .5rem .6rem; }
}
@media (prefers-reduced-motion: reduce) { html { scroll-behavior: auto; } }
@media print { nav, .skip { display: none; } .wide, figure, .notice { break-inside: avoid; } }
""")

_SCRIPT = Markup("""
for (const table of document.querySelectorAll("table")) {
  const body = table.tBodies[0];
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const numbers = head.classList.contains("number");
    head.querySelector("button").addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending" || (numbers && !head.hasAttribute("aria-sort"));
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const key = row => row.cells[column].dataset.key;
      const order = (a, b) => numbers ? (a === "" ? -Infinity : +a) - (b === "" ? -Infinity : +b)
        : a.localeCompare(b, undefined, {numeric: true});
      body.append(...[...body.rows].sort((a, b) => (down ? -1 : 1) * order(key(a), key(b))));
    });
  });
}
""")
