"""``meshmoe bench links``: what the links between boxes do."""

from __future__ import annotations

import sys

import click
import msgspec
import trio

from meshmoe.bench.links import PORT, LinkFigures, measure_link, serve_links
from meshmoe.bench.tables import table
from meshmoe.core.token import parse_address


@click.command()
@click.argument("hosts", nargs=-1, metavar="[HOST[:PORT]]...")
@click.option("--listen", metavar="HOST:PORT", is_flag=False, flag_value=f"0.0.0.0:{PORT}", help="Answer others.")
@click.option("--json", "as_json", is_flag=True, help="All numbers, for programs.")
def links(hosts: tuple[str, ...], listen: str | None, as_json: bool) -> None:
    """Measure the links from this box to others: round trip of an expert call, and bulk rate each way.

    \b
      meshmoe bench links --listen                    on the other boxes
      meshmoe bench links 192.168.1.21 192.168.1.22   on this one

    A measurement fills a link for six seconds. The last lines are for a topology file.
    """
    if listen is not None:
        host, port = parse_address(listen, "--listen", port_min=0)
        click.echo("listening; Ctrl-C ends it", err=True)
        trio.run(serve_links, host, port, lambda got: click.echo(f"port {got}", err=True))
        return
    if not hosts:
        raise click.UsageError("name the boxes to measure the links to, or --listen")
    addresses = [parse_address(host if ":" in host else f"{host}:{PORT}", "HOST") for host in hosts]
    figures: list[LinkFigures] = []
    for host, port in addresses:
        click.echo(f"{host} ...", err=True)
        figures.append(trio.run(measure_link, host, port))
    if as_json:
        sys.stdout.write(msgspec.json.encode(figures).decode() + "\n")
        return
    rows = [
        [one.host, f"{one.rtt_ms:.2f}", f"{one.rtt_p99_ms:.2f}", f"{one.jitter_ms:.2f}"]
        + [f"{rate * 8 / 1e6:.0f}" for rate in (one.rate_out_bytes_per_s, one.rate_in_bytes_per_s)]
        for one in figures
    ]
    click.echo(table(["to", "rtt ms", "p99 ms", "jitter ms", "Mbit/s out", "Mbit/s in"], rows))
    for one in figures:
        rate = min(one.rate_out_bytes_per_s, one.rate_in_bytes_per_s) * 8 / 1e6
        click.echo(
            f'\n[[links]]\nbetween = ["here", "{one.host}"]\nrtt = "{one.rtt_ms:.2f}ms"\nrate = "{rate:.0f}Mbit/s"\n'
            f'jitter = "{one.jitter_ms:.2f}ms"'
        )
