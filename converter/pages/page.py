"""The frame and the style that all pages share: light and dark, readable without scripts."""

from html import escape

STYLE = """
:root { color-scheme: light dark; --bg: #fff; --fg: #1c1f23; --soft: #5d6670; --line: #dfe3e8;
  --card: #f6f7f9; --bar: #3b6fb6; --bad: #b3261e; --warn: #9a6200; --good: #1f7a3d; }
@media (prefers-color-scheme: dark) { :root { --bg: #15181c; --fg: #e6e8eb; --soft: #9aa4af; --line: #2e343b;
  --card: #1d2126; --bar: #7aa7e6; --bad: #ff8a80; --warn: #f0b452; --good: #7bd197; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.25rem; max-width: 76rem; background: var(--bg); color: var(--fg);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.4rem; margin: 0 0 .25rem; overflow-wrap: anywhere; }
h2 { font-size: 1.05rem; margin: 2rem 0 .75rem; }
p { margin: .25rem 0; overflow-wrap: anywhere; }
.soft { color: var(--soft); } .bad { color: var(--bad); } .warn { color: var(--warn); }
.good { color: var(--good); } .bad, .warn, .good { font-weight: 600; }
.tiles, .plots { display: grid; gap: .75rem; grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr)); }
.tiles { margin-top: 1.25rem; } .plots { grid-template-columns: repeat(auto-fill, minmax(19rem, 1fr)); }
.tiles div, figure { background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  padding: .75rem 1rem; margin: 0; }
.tiles b { display: block; font-size: 1.35rem; font-variant-numeric: tabular-nums; }
figcaption { font-size: .85rem; overflow-wrap: anywhere; } svg { display: block; width: 100%; height: auto; }
svg rect { fill: var(--bar); } svg line { stroke: var(--line); }
svg text { fill: var(--soft); font-size: 10px; }
svg line.mark { stroke: var(--bad); stroke-dasharray: 3 3; }
svg text.mark { fill: var(--bad); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .35rem 1rem; margin: 0; font-size: .88rem; }
dt { font-weight: 600; } dd { margin: 0; max-width: 60rem; }
svg.curve { max-width: 44rem; } svg polyline { fill: none; stroke: var(--bar); stroke-width: 2; }
svg circle { fill: var(--bar); } svg circle.chosen { fill: none; stroke: var(--good); stroke-width: 3; }
.wide { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-size: .88rem; }
th, td { text-align: left; padding: .35rem .6rem; border-bottom: 1px solid var(--line); vertical-align: top; }
th { position: sticky; top: 0; background: var(--bg); } td.n, th.n { text-align: right;
  font-variant-numeric: tabular-nums; white-space: nowrap; } td.name { overflow-wrap: anywhere; }
"""


def page(title: str, body: str) -> str:
    """Return a whole page; body: HTML."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )
