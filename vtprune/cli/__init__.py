"""The command line, `vtprune list | run | check | sweep | report | ... | serve`; heavy imports come late."""

from __future__ import annotations

import typer

from vtprune.cli import calibrate, check, demo, methods, profile, reports, run, serve, sweep

app = typer.Typer(
    name="vtprune",
    help="Prunes the visual tokens of vision-language models, and measures what that costs and buys.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

# In the order of the help page.
app.command("list")(methods.list_command)
app.command("run")(run.run_command)
app.command("check")(check.check_command)
app.command("sweep")(sweep.sweep_command)
app.command("report")(reports.report_command)
app.command("compare")(reports.compare_command)
app.command("leaderboard")(reports.leaderboard_command)
app.command("profile")(profile.profile_command)
app.command("calibrate")(calibrate.calibrate_command)
app.command("demo")(demo.demo_command)
# What is not ours goes on to `vllm serve`.
app.command("serve", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(serve.serve_command)


def main() -> None:
    """Runs the command line."""
    app()
