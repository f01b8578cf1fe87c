"""Several results as one HTML page that needs nothing else: tables, pictures and the raw JSON inside."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks import plots, report

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; margin: 1rem 0; display: block; overflow-x: auto; }
td { font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
th { border-bottom: 2px solid #888; }
img { max-width: 100%; } pre { overflow-x: auto; background: #f6f6f6; padding: .7rem; font-size: 12px; }
code { background: #f6f6f6; } .warning { background: #fff3cd; padding: .5rem .7rem; }
@media (prefers-color-scheme: dark) { body { background: #181818; color: #ddd; } pre, code { background: #262626; }
th, td { border-color: #444; } img { background: #fff; } .warning { background: #4d3f00; } }
"""


def page(results: Sequence[Mapping[str, Any]], failures: Mapping[str, str] | None = None) -> str:
    """The page.

    Args:
        results: in the order of the page; at least one.
        failures: benchmark -> the error that it ended with.
    """
    machine = results[0]["machine"]
    facts = {
        "Processor": f"{machine['processor']}, {machine['cores']} cores",
        "GPU cores": machine["gpu_cores"],
        "Memory": f"{machine['memory_gb']} GB",
        "System": machine["system"],
        "Power": machine["power"],
        "MLX computes on": machine["device"].upper(),
        "The maker says": machine["nominal"]
        and f"{machine['nominal']['bandwidth_gb_s']} GB/s, {machine['nominal']['tflops']} TFLOP/s with "
        f"{machine['nominal']['gpu_cores']} GPU cores ({machine['nominal']['source']})",
        "Versions": ", ".join(f"{name} {number}" for name, number in machine["versions"].items()),
    }
    body = ["<h1>mlx-bert on this machine</h1>", "<table>"]
    body += [f"<tr><th>{name}</th><td style='text-align:left;white-space:normal'>{html.escape(str(value))}</td></tr>"
             for name, value in facts.items() if value]  # fmt: skip
    body.append("</table>")
    for result in results:
        body += _section(result)
    for verb, error in (failures or {}).items():
        body.append(f"<h2>{html.escape(verb)}</h2><p class='warning'>Not measured: {html.escape(error)}</p>")
    title = f"mlx-bert, {machine['processor']}"
    return (
        f"<!doctype html>\n<html lang='en'><head><meta charset='utf-8'><title>{html.escape(title)}</title>"
        f"<meta name='viewport' content='width=device-width'><style>{STYLE}</style></head>\n<body>\n"
        + "\n".join(body)
        + "\n</body></html>\n"
    )


def _section(result: Mapping[str, Any]) -> list[str]:
    settings = ", ".join(f"{name} {value}" for name, value in result["settings"].items() if value is not None)
    lines = [
        f"<h2>{html.escape(result['benchmark'])}</h2>",
        f"<p>{html.escape(settings)}.<br><code>{html.escape(result['command'])}</code>, {result['date']}</p>",
    ]
    if warning := report.busy(result["machine"]):
        lines.append(f"<p class='warning'>{html.escape(warning.replace('**', ''))}</p>")
    if peak := report.roofline_line(result):
        lines.append(f"<p>{html.escape(peak)}</p>")
    if note := result.get("note"):
        lines.append(f"<p>{html.escape(note)}</p>")
    lines.append(_table(result["rows"]))
    try:
        picture = plots.png(result)
    except ImportError as error:
        lines.append(f"<p>{html.escape(str(error))}</p>")
    else:
        if picture:
            data = base64.b64encode(picture).decode()
            lines.append(f"<img alt='{html.escape(result['benchmark'])}' src='data:image/png;base64,{data}'>")
    raw = html.escape(json.dumps(result, indent=1, ensure_ascii=False))
    return [*lines, f"<details><summary>JSON</summary><pre>{raw}</pre></details>"]


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    columns = report.columns_of(rows)
    head = "".join(f"<th>{html.escape(column)}</th>" for column in columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(report.cell(row.get(column)))}</td>" for column in columns) + "</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
