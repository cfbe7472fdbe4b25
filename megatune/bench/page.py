"""One self-contained HTML page of bench records: tables and pictures, no script, nothing fetched."""

import base64
import html
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from megatune.bench.figures import CaseFigures, training_cases
from megatune.bench.printed import printed_tables
from megatune.bench.record import peak_words, what_ran
from megatune.report.tables import format_cell
from megatune.units import format_bytes, format_ratio

_STYLE = (
    "body{font:15px/1.45 system-ui,sans-serif;max-width:75em;margin:2em auto;padding:0 1em;color:#222}"
    "table{border-collapse:collapse;margin:1em 0}td,th{padding:.25em .7em;border-bottom:1px solid #ddd;text-align:left}"
    "td.n{text-align:right;font-variant-numeric:tabular-nums}img{max-width:100%}small{color:#666}"
)
_TITLES = {
    "bars": "Speed",
    "scaling": "Scaling over ranks",
    "roofline": "Distance to the machine's measured peak",
}


def render_page(records: Sequence[tuple[Mapping[str, Any], Mapping[str, bytes]]]) -> str:
    """The page of records, each with its pictures (name -> PNG)."""
    parts = [part for record, pictures in records for part in _record(record, pictures)]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>megatune bench</title>'
        f"<style>{_STYLE}</style></head><body><h1>Benchmarks</h1>{''.join(parts)}</body></html>\n"
    )


def case_rows(record: Mapping[str, Any]) -> list[dict[str, str]]:
    """A row a case that trained or failed, for tables of any kind; `printed_tables` has the others."""
    trained = {case.name: case for case in training_cases(record)}
    return [_row(case, trained.get(case["name"])) for case in record["cases"] if "printed" not in case]


def _record(record: Mapping[str, Any], pictures: Mapping[str, bytes]) -> Iterator[str]:
    machine, versions = record["machine"], record["versions"]
    gpus = ", ".join(gpu["name"] for gpu in machine["gpus"]) or "none"
    yield f"<h2>{_text(record['suite'])}</h2><p>{_text(record['about'])}</p>"
    yield _table(case_rows(record))
    for case, rows in printed_tables(record):
        yield f"<h3>{_text(case)}</h3>{_table(rows)}"
    for name, png in pictures.items():
        encoded = base64.b64encode(png).decode()
        yield f'<h3>{_TITLES[name]}</h3><img alt="{_TITLES[name]}" src="data:image/png;base64,{encoded}">'
    for told in (
        _measured(record["peaks"]) if record["peaks"] else "",
        *_between(record.get("node_links") or ()),
    ):
        yield f"<p><small>{_text(told)}</small></p>" if told else ""
    known = ", ".join(f"{package} {version}" for package, version in versions.items() if version)
    yield (
        f"<p><small>{_text(record['time'])}, commit {_text(record['commit'])}; {_text(machine['cpu'])}, "
        f"{machine['cpu_cores']} cores, {format_bytes(machine['host_memory_bytes'])}, GPUs: {_text(gpus)}; load "
        f"{_text(machine['load_1_5_15_min'])}; {record['rounds']} round(s); {_text(known)}</small></p>"
    )


def _measured(peaks: Mapping[str, Any]) -> str:
    """What a rank reached while all worked."""
    rates = [f"{name} products {rate / 1e9:.0f} GFLOP/s" for name, rate in peaks["flops_per_s"].items()]
    rates.append(f"memory {peaks['memory_bytes_per_s'] / 1e9:.1f} GB/s")
    link = peaks.get("link_bytes_per_s")
    rates.append(f"links {'n/a' if link is None else f'{link / 1e9:.2f} GB/s'}")
    return f"Measured, of a rank while {peaks['ranks']} work: {', '.join(rates)}."


def _between(links: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    for link in links:
        rate = link["link_bytes_per_s"] / 1e9
        yield f"Links, of a rank while {link['ranks']} on {link['nodes']} nodes send: {rate:.2f} GB/s."


def _row(case: Mapping[str, Any], trained: CaseFigures | None) -> dict[str, str]:
    if case.get("failure"):
        return {"case": case["name"], "what": f"failed: {case['failure'].splitlines()[0]}"}
    assert trained is not None, "what ran and did not fail has trained"
    ratio = case["to_baseline"]
    against = "" if not isinstance(ratio, dict) else f"{ratio['tokens_per_second']['median']:.2f}"
    return {
        "case": trained.name,
        "tokens/s": str(trained.tokens_per_second),
        "CPU ms/token": f"{1e3 * trained.cpu_seconds_per_token.median:.3g}",
        "peak memory": peak_words(case),
        "of measured peak": format_ratio(trained.peak_share),
        "memory": format_ratio(None if trained.floors is None else trained.floors.memory),
        "links": format_ratio(None if trained.floors is None else trained.floors.links),
        "tokens/s to baseline": trained.refused or against or "",
        "what": what_ran(case),
    }


def _table(rows: Sequence[Mapping[str, str]]) -> str:
    if not rows:
        return ""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    head = "".join(f"<th>{_text(name)}</th>" for name in columns)
    body = "".join(
        "<tr>" + "".join(_cell(name, row.get(name, "")) for name in columns) + "</tr>" for row in rows
    )
    return f"<table><tr>{head}</tr>{body}</table>"


def _cell(name: str, value: str) -> str:
    kind = "" if name in ("case", "what") else ' class="n"'
    return f"<td{kind}>{_text(value)}</td>"


def _text(value: object) -> str:
    return html.escape(format_cell(value))
