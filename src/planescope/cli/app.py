"""Wires the commands together: each is loaded when it is named."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import click

from planescope import __version__

# Each is a module of this package with a command of its own name; said here, so that the list of
# all of them needs none.
COMMANDS = {
    "claims": "Answer the paper's claims from the runs of a study.",
    "diff": "Tell what moved between two checkpoints, layer by layer.",
    "figures": "Write every figure of a paper on some networks.",
    "measure": "Measure the hyperplanes of checkpoints: no data, no GPU.",
    "plan": "Make a smaller network out of a trained one.",
    "predict": "Say which layers a network cannot do without, without labels.",
    "quickstart": "Measure two published networks, train one, reset its layers.",
    "relate": "Ask whether the bias ranks the layers as resets do.",
    "repair": "Repair the layers of a pruned, quantised or reset network.",
    "report": "Write one HTML page that shows what is known of networks.",
    "reset": "Put each layer of a trained network back to earlier weights.",
    "sensitivity": "Say what it costs to prune, thin, factor or quantise layers.",
    "status": "Tell what training runs are, and how far they came.",
    "study": "Make all runs of a study: train, measure, reset, relate.",
    "train": "Train a network and measure it on the way.",
}


class _Commands(click.Group):
    """A group of commands whose modules are not loaded before one of them is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = getattr(import_module(f"planescope.cli.{cmd_name}"), cmd_name)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as exc:  # for which click itself would print an empty line
            raise click.Abort from exc
        except click.UsageError as exc:
            # Of an option without its value click does not say which command has it.
            name = ctx.invoked_subcommand
            if exc.ctx is None and name is not None:
                command = self.get_command(ctx, name)
                if command is not None:
                    exc.ctx = click.Context(command, info_name=name, parent=ctx)
            raise

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """Write the list of the commands."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


def _about(ctx: click.Context, _: click.Parameter, asked: bool) -> None:
    if asked and not ctx.resilient_parsing:
        from planescope.cli.about import about

        click.echo(about())
        ctx.exit()


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="planescope", message="%(prog)s %(version)s")
@click.option(
    "--about",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_about,
    help="Show versions and platform, for a report of a fault, and exit.",
)
def app() -> None:
    """Measure how the hyperplanes of a trained network face its data."""
