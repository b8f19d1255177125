"""The style sheet of the report's page: light and dark colors, wide and narrow screens."""

from __future__ import annotations

#: Colors of the series of a scatter plot; a further one, grey, is for all other series.
SERIES = 7

_LIGHT = """\
  --page: #fbfbfa; --card: #ffffff; --text: #1d1d1b; --muted: #5f5e5a; --line: #e1e0dc;
  --c0: #2a78d6; --c1: #eb6834; --c2: #1a9c6d; --c3: #b98000; --c4: #6c5bc9; --c5: #d63f3e;
  --c6: #cf5a8a; --c7: #8a8984; --before: #b9d3f2; --after: #c2410c;"""

_DARK = """\
  --page: #161615; --card: #1f1f1d; --text: #f1f0ec; --muted: #b0afa8; --line: #3a3936;
  --c0: #4f97ea; --c1: #e8774a; --c2: #2fb286; --c3: #d39a1f; --c4: #9c92ee; --c5: #ea7574;
  --c6: #e07aa5; --c7: #94938d; --before: #2d5079; --after: #ff9d5c;"""

_CLASSES = "\n".join(
    f".c{i} {{ fill: var(--c{i}); }} .key.c{i} {{ background: var(--c{i}); }}"
    for i in range(SERIES + 1)
)

STYLE = f"""\
:root {{
  color-scheme: light dark;
{_LIGHT}
}}
@media (prefers-color-scheme: dark) {{ :root {{
{_DARK}
}} }}
* {{ box-sizing: border-box; }}
body {{
  margin: 0 auto; max-width: 75rem; padding: 1.5rem 1rem 4rem; background: var(--page);
  color: var(--text); font: 0.9375rem/1.5 system-ui, "Segoe UI", Roboto, sans-serif;
}}
h1 {{ font-size: 1.5rem; line-height: 1.25; margin: 0 0 0.25rem; overflow-wrap: anywhere; }}
h2 {{ font-size: 1.125rem; margin: 2.5rem 0 0.5rem; }}
p {{ margin: 0.25rem 0; max-width: 48rem; }}
.muted, figcaption + p {{ color: var(--muted); }}
dl.tiles {{
  display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: 0.75rem;
  margin: 1.25rem 0;
}}
dl.tiles > div, figure {{
  background: var(--card); border: 1px solid var(--line); border-radius: 0.5rem;
}}
dl.tiles > div {{ padding: 0.75rem 0.875rem; }}
dt {{ color: var(--muted); font-size: 0.8125rem; }}
dd {{ margin: 0; font-size: 1.375rem; font-weight: 600; }}
dd small {{ display: block; font-size: 0.8125rem; font-weight: 400; color: var(--muted); }}
figure {{ margin: 0; padding: 0.875rem 1rem; min-width: 0; }}
figcaption {{ font-weight: 600; overflow-wrap: anywhere; }}
figcaption + p {{ margin: 0; font-size: 0.8125rem; }}
.plots {{
  display: grid; gap: 0.75rem;
  grid-template-columns: repeat(auto-fit, minmax(min(22rem, 100%), 1fr));
}}
.legend {{
  display: flex; flex-wrap: wrap; gap: 0.125rem 1rem; list-style: none; margin: 0.25rem 0;
  padding: 0; font-size: 0.8125rem; color: var(--muted);
}}
.key {{
  display: inline-block; width: 0.625rem; height: 0.625rem; border-radius: 50%;
  margin-right: 0.375rem;
}}
.key.before {{ background: var(--before); border-radius: 0; }}
.key.after {{ background: var(--after); border-radius: 0; height: 2px; vertical-align: middle; }}
.frame {{
  display: grid; grid-template: auto 13rem 1.25rem auto / 2.5rem 1fr; margin-top: 0.75rem;
  font-size: 0.75rem; color: var(--muted); font-variant-numeric: tabular-nums;
}}
.scatter .frame {{ grid-template-rows: auto 18rem 1.25rem auto; }}
.small .frame {{ grid-template-rows: auto 8rem 1.25rem auto; }}
.frame svg {{ grid-area: 2 / 2; width: 100%; height: 100%; overflow: visible; }}
.y-label {{ grid-area: 1 / 1 / 2 / 3; margin-bottom: 0.5rem; }}
.x-label {{ grid-area: 4 / 2; text-align: center; }}
.y-ticks {{ grid-area: 2 / 1; position: relative; }}
.y-ticks span {{ position: absolute; right: 0.5rem; transform: translateY(50%); }}
.x-ticks {{ grid-area: 3 / 2; position: relative; }}
.x-ticks span {{ position: absolute; top: 0.125rem; transform: translateX(-50%); }}
.grid line {{ stroke: var(--line); }}
{_CLASSES}
circle {{ stroke: var(--card); stroke-width: 1; }}
circle:hover, rect:hover {{ stroke: var(--text); }}
.beyond {{ font-size: 0.75rem; text-anchor: middle; }}
rect.before {{ fill: var(--before); }}
.after line {{ stroke: var(--after); stroke-width: 1.5; }}
.scroll {{ overflow-x: auto; }}
table {{ border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }}
th, td {{
  padding: 0.25rem 1rem 0.25rem 0; text-align: right; white-space: nowrap;
  border-bottom: 1px solid var(--line);
}}
th {{ color: var(--muted); font-weight: 500; font-size: 0.8125rem; }}
.l {{ text-align: left; }}
td.name {{ text-align: left; white-space: normal; overflow-wrap: anywhere; min-width: 11rem; }}
details {{ margin-top: 0.75rem; }}
summary {{ cursor: pointer; color: var(--muted); }}
@media (max-width: 40rem) {{
  body {{ padding: 1rem 0.75rem 3rem; }}
  figure {{ padding: 0.75rem 0.625rem; }}
  th, td {{ padding-right: 0.5rem; font-size: 0.8125rem; }}
  .scatter .frame {{ grid-template-rows: auto 14rem 1.25rem auto; }}
}}
@media print {{ body {{ background: none; }} .scroll {{ overflow: visible; }} }}
"""
