"""The colours of a page: one palette for light and dark, and one colour per component over all its figures.

The six component colours keep a contrast of at least 4.5 to the page in both modes and stay apart under simulated
deuteranopia, protanopia and tritanopia (a test measures both). From the seventh component on the same colours return
with another dash pattern.

The style sheet every page carries inside: system fonts, light and dark, narrow screens, paper.
"""

from collections.abc import Sequence

LIGHT = {
    "ink": "#1c2126",
    "muted": "#5b646d",
    "rule": "#d3d8dd",
    "band": "#e9ecef",
    "paper": "#fdfdfb",
    "c1": "#0077c4",
    "c2": "#b05d08",
    "c3": "#1b5a42",
    "c4": "#945f99",
    "c5": "#6b430f",
    "c6": "#43305c",
}
DARK = {
    "ink": "#e9ebee",
    "muted": "#9ba5af",
    "rule": "#343b43",
    "band": "#262c33",
    "paper": "#15181c",
    "c1": "#559be3",
    "c2": "#eda345",
    "c3": "#5fd3a6",
    "c4": "#e3bdf0",
    "c5": "#a3865a",
    "c6": "#8790ba",
}
SLOTS = ("c1", "c2", "c3", "c4", "c5", "c6")
DASHES = ("solid", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))

WIDE_PX = 936
NARROW_PX = 380


class Palette:
    """One colour per component, by its place in `names`; the same in every figure and table of a page."""

    def __init__(self, names: Sequence[str]):
        self._place = {name: place for place, name in enumerate(dict.fromkeys(names))}

    def slot(self, name: str) -> str:
        """The colour's role, `c1` to `c6`; ink for a name that is no component."""
        return SLOTS[self._place[name] % len(SLOTS)] if name in self._place else "ink"

    def dash(self, name: str) -> object:
        """The line style that tells apart components which share a colour."""
        return DASHES[self._place.get(name, 0) // len(SLOTS) % len(DASHES)]


def _variables(colours: dict[str, str]) -> str:
    return "".join(f"--{role}:{colour};" for role, colour in colours.items())


_LAYOUT = """
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%;scroll-behavior:smooth}
body{margin:0;background:var(--paper);color:var(--ink);font:400 1rem/1.6 var(--sans);overflow-wrap:anywhere;
  font-variant-numeric:lining-nums;text-rendering:optimizeLegibility}
main,header,footer{max-width:62rem;margin:0 auto;padding:0 1.75rem}
header{padding-top:3.5rem}
.overline{margin:0 0 1.4rem;color:var(--muted);font-size:.875rem;letter-spacing:.01em}
.overline b{color:var(--ink);font-weight:600}
h1{margin:0;max-width:46rem;font:400 clamp(1.55rem,1.1rem + 2vw,2.4rem)/1.26 var(--serif);letter-spacing:-.012em;text-wrap:pretty}
.lede{margin:1.4rem 0 0;max-width:40rem;color:var(--muted);font-size:1.0625rem;text-wrap:pretty}
.key{display:grid;grid-template-columns:repeat(auto-fit,minmax(9.5rem,1fr));gap:1.6rem 2rem;margin:2.8rem 0 0;padding:1.5rem 0 0;
  border-top:1px solid var(--rule)}
.key div{min-width:0}
.key dt{color:var(--muted);font-size:.8125rem}
.key dd{margin:.1rem 0 0;font-size:1.5rem;line-height:1.3;font-weight:500;letter-spacing:-.01em;
  font-variant-numeric:tabular-nums lining-nums}
.key .note{display:block;color:var(--muted);font-size:.8125rem;font-weight:400;letter-spacing:0;line-height:1.45;margin-top:.15rem}
nav{margin:2.6rem 0 0;font-size:.875rem}
nav ul{list-style:none;display:flex;flex-wrap:wrap;gap:.35rem 1.35rem;margin:0;padding:0}
a{color:inherit;text-decoration:underline;text-decoration-color:var(--rule);text-decoration-thickness:1px;text-underline-offset:.22em}
a:hover{text-decoration-color:currentColor}
:focus-visible{outline:2px solid var(--c1);outline-offset:3px;border-radius:2px}
section{margin:5rem 0 0}
h2{margin:0 0 .5rem;font-size:1.3125rem;line-height:1.35;font-weight:600;letter-spacing:-.012em}
h3{margin:2.6rem 0 .4rem;font-size:1rem;font-weight:600}
p{max-width:42rem;margin:.5rem 0;text-wrap:pretty}
.muted,.absent{color:var(--muted)}
.absent{padding-left:.9rem;border-left:2px solid var(--rule)}
figure{margin:2rem 0 0}
figcaption{max-width:42rem;margin-top:.7rem;color:var(--muted);font-size:.875rem;line-height:1.55;text-wrap:pretty}
svg.figure{display:block;width:100%;height:auto;overflow:visible;font-family:var(--sans);font-variant-numeric:tabular-nums lining-nums}
svg.figure *{stroke-linejoin:round;stroke-linecap:butt}
svg.figure text{paint-order:stroke;stroke:var(--paper);stroke-width:3px}
svg.wide{max-width:WIDEpx}
svg.narrow{display:none;max-width:30rem}
section>details:first-of-type{margin-top:1.6rem}
.scroll{overflow-x:auto;margin:1.8rem 0 0}
table{border-collapse:collapse;width:100%;font-size:.875rem;line-height:1.5;font-variant-numeric:tabular-nums lining-nums}
th,td{padding:.62rem 1.1rem .62rem 0;text-align:left;vertical-align:baseline;border-bottom:1px solid var(--rule)}
th:last-child,td:last-child{padding-right:0}
thead th{color:var(--muted);font-weight:400;font-size:.8125rem;padding-top:0;white-space:nowrap}
th,td{overflow-wrap:normal}
tbody th{font-weight:600;min-width:9.5rem;max-width:16rem;overflow-wrap:anywhere}
td.number,th.number{text-align:right;white-space:nowrap;padding-right:1.9rem}
td.number:last-child,th.number:last-child{padding-right:0}
td.wordy{min-width:15rem;max-width:24rem;overflow-wrap:anywhere}
.swatch{flex:none;width:.62em;height:.62em;border-radius:50%;background:var(--component,var(--ink))}
.name{display:inline-flex;align-items:baseline;gap:.5em;min-width:0;overflow-wrap:anywhere}
.verdict-register::before,.verdict-downweight::before,.verdict-reject::before,.verdict-warn::before,.verdict-ungated::before{display:inline-block;
  width:1.35em;font-weight:600}
.verdict{white-space:nowrap;font-weight:600}
.verdict-register::before{content:"\\2713"}
.verdict-downweight::before{content:"\\2193"}
.verdict-reject::before{content:"\\2715"}
.verdict-warn::before{content:"!"}
.verdict-ungated::before{content:"\\2013"}
details{border-top:1px solid var(--rule)}
details:last-of-type{border-bottom:1px solid var(--rule)}
summary{padding:.85rem 0;cursor:pointer;list-style:none;display:flex;gap:.9rem;align-items:baseline}
summary::-webkit-details-marker{display:none}
summary::before{content:"+";color:var(--muted);width:.8rem;flex:none;text-align:center}
details[open]>summary::before{content:"\\2212"}
summary .aside{flex:0 0 auto;max-width:55%;margin-left:auto;color:var(--muted);font-size:.875rem;text-align:right;
  font-variant-numeric:tabular-nums}
.inside{padding:.2rem 0 2.2rem 1.7rem}
.grouping+.grouping{margin-top:2.4rem}
.grouping>p{margin:0 0 1rem;color:var(--muted);font-size:.875rem}
.clusters{columns:2 22rem;column-gap:2rem}
.cluster{break-inside:avoid;margin:0 0 1.3rem;padding:0 0 0 1rem;border-left:2px solid var(--component,var(--rule))}
.cluster.invalid{border-left-style:dashed;border-left-color:var(--muted)}
.cluster h4{margin:0;font-size:.8125rem;font-weight:600}
.cluster .reason{margin:.1rem 0 .5rem;font-size:.875rem;line-height:1.5}
.cluster .reason.check{color:var(--muted)}
.cluster ul{list-style:none;margin:0;padding:0}
.cluster li{margin:.4rem 0;font-size:.8125rem;line-height:1.5}
.cluster li .reason{display:block;margin:0;font-size:.8125rem}
.sample{display:block;color:var(--muted);white-space:pre-line;unicode-bidi:isolate}
.piece{margin:0;padding:.55rem 0 .55rem 1rem;border-left:2px solid var(--component,var(--rule));font-size:.875rem;line-height:1.55}
.piece .sample{color:inherit;white-space:pre-wrap}
.piece.ends{position:relative;border-bottom:1px dashed var(--muted);padding-bottom:1.5rem}
.piece.ends::after{content:"end of document";position:absolute;right:0;bottom:.15rem;color:var(--muted);font-size:.75rem}
.alone{break-inside:auto;border-left-color:var(--rule)}
.alone li{break-inside:avoid}
.warnings{max-width:42rem;margin:.6rem 0 0;padding:0 0 0 .9rem;border-left:2px solid var(--ink);list-style:none}
.warnings li{margin:.3rem 0}
.facts{display:grid;grid-template-columns:minmax(8rem,13rem) 1fr;margin:1.6rem 0 0;font-size:.875rem;line-height:1.55}
.facts dt,.facts dd{padding:.5rem 0;margin:0;border-bottom:1px solid var(--rule);min-width:0}
.facts dt{color:var(--muted);padding-right:1.5rem}
code,.mono{font-family:var(--mono);font-size:.9em;overflow-wrap:anywhere;white-space:pre-wrap}
.criterion{margin:0 0 1.4rem;max-width:42rem}
.criterion h4{margin:0;font-size:.9375rem;font-weight:600}
.criterion h4 span{font-weight:400}
.criterion p,.criterion li{margin:.15rem 0;font-size:.875rem;line-height:1.5}
.criterion ol{margin:.3rem 0 0;padding-left:1.3rem;color:var(--muted)}
footer{margin-top:5rem;padding-top:1.2rem;padding-bottom:3rem;color:var(--muted);font-size:.8125rem}
footer p{border-top:1px solid var(--rule);padding-top:1.2rem;max-width:none}
"""

_NARROW = """
@media screen and (max-width:46rem){
  main,header,footer{padding-left:1.25rem;padding-right:1.25rem}
  header{padding-top:2.5rem}
  section{margin-top:3.8rem}
  .key{grid-template-columns:repeat(2,1fr);gap:1.3rem 1.2rem;margin-top:2rem}
  .key dd{font-size:1.25rem}
  svg.wide{display:none}
  svg.narrow{display:block}
  .stack thead{position:absolute;clip-path:inset(50%);width:1px;height:1px;overflow:hidden}
  .stack table,.stack tbody,.stack tr,.stack th,.stack td{display:block}
  .stack tr{padding:.8rem 0;border-bottom:1px solid var(--rule)}
  .stack th,.stack td{border:0;padding:.12rem 0}
  .stack tbody td{display:grid;grid-template-columns:8.5rem 1fr;gap:.8rem;text-align:left;white-space:normal;max-width:none;min-width:0}
  .stack tbody td::before{content:attr(data-label);color:var(--muted)}
  summary{flex-wrap:wrap;gap:.2rem .9rem}
  summary .aside{flex:1 1 calc(100% - 1.7rem);max-width:none;margin-left:1.7rem;text-align:left}
  .inside{padding-left:0}
  .facts{grid-template-columns:1fr}
  .facts dt{border:0;padding-bottom:0}
  .facts dd{padding-top:0}
}
"""

_PRINT = """
@media print{
  @page{margin:16mm 14mm}
  :root{LIGHT;--paper:#fff}
  body{font-size:10.5pt;-webkit-print-color-adjust:exact;print-color-adjust:exact}
  main,header,footer{max-width:none;padding-left:0;padding-right:0}
  header{padding-top:0}
  nav{display:none}
  section{margin-top:2.2rem}
  h2,h3{break-after:avoid}
  figure,tr,.cluster{break-inside:avoid}
  details::details-content{content-visibility:visible;block-size:auto}
  summary::before{content:"" !important;width:0}
  .scroll{overflow:visible}
  table{font-size:8.5pt}
  th,td{padding:.4rem .8rem .4rem 0}
  td.number,th.number{padding-right:1rem}
  tbody th{min-width:6.5rem}
  .key{grid-template-columns:repeat(auto-fit,minmax(7.5rem,1fr));gap:1rem 1.2rem}
  td.wordy{min-width:8rem}
  thead th{white-space:normal}
  .key dd{font-size:1.2rem}
}
"""

_FONTS = (
    '--sans:ui-sans-serif,system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue","Noto Sans",Arial,sans-serif;'
    '--serif:"Iowan Old Style","Palatino Linotype",Palatino,"Noto Serif",Georgia,serif;'
    '--mono:ui-monospace,"SF Mono",Menlo,Consolas,"Liberation Mono",monospace;'
)


def style_sheet() -> str:
    """The page's whole CSS: light by default, dark where the reader's system asks for it, always light on paper."""
    components = "".join(f".{slot}{{--component:var(--{slot})}}" for slot in SLOTS)
    return (
        f":root{{color-scheme:light dark;{_variables(LIGHT)}{_FONTS}}}\n"
        f"@media screen and (prefers-color-scheme:dark){{:root{{{_variables(DARK)}}}}}\n"
        + _LAYOUT.replace("WIDEpx", f"{WIDE_PX}px").strip()
        + f"\n{components}{_NARROW}"
        + _PRINT.replace("LIGHT;", _variables(LIGHT)).rstrip()
    )
