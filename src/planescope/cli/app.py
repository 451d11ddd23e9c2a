"""Wires the commands together; holds nothing else."""

from __future__ import annotations

import click

from planescope import __version__
from planescope.cli.claims import claims
from planescope.cli.figures import figures
from planescope.cli.fit import fit
from planescope.cli.measure import measure
from planescope.cli.predict import predict
from planescope.cli.quickstart import quickstart
from planescope.cli.relate import relate
from planescope.cli.repair import repair
from planescope.cli.report import report
from planescope.cli.reset import reset
from planescope.cli.status import status
from planescope.cli.study import study
from planescope.cli.train import train


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="planescope", message="%(prog)s %(version)s")
def app() -> None:
    """Measure how the hyperplanes of a trained network face its data."""


app.add_command(claims)
app.add_command(figures)
app.add_command(fit)
app.add_command(measure)
app.add_command(predict)
app.add_command(quickstart)
app.add_command(relate)
app.add_command(repair)
app.add_command(report)
app.add_command(reset)
app.add_command(status)
app.add_command(study)
app.add_command(train)
