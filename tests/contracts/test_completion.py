"""What a shell offers after a TAB, and the examples that end each command's help."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from cleanprior.cli import build_app
from cleanprior.commands import completion
from cleanprior.commands.examples import EXAMPLES
from cleanprior.commands.scaffold import KINDS
from cleanprior.config import compose, registry

COMMAND = typer.main.get_command(build_app())
PROGRAM = str(Path(sys.executable).with_name("cleanprior"))


def offered(line):
    """Return what is offered at the end of a line, as zsh and fish ask: words broken at blanks."""
    *words, incomplete = line.split(" ")
    name, *given = words
    command = COMMAND.commands[name]
    context = command.make_context(name, list(given), resilient_parsing=True)
    parameters = [p for p in command.params if given and given[-1] in p.opts]
    parameter = (
        parameters or [p for p in command.params if p.name in ("overrides", "what", "kind")]
    )[0]
    return [item.value for item in parameter.shell_complete(context, incomplete)]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("bench --methods masked", ["masked_loss"]),
        ("bench --methods em,masked", ["em,masked_loss"]),
        ("bench --operator inpainting,box,blu", ["inpainting,box,blur"]),
        ("bench --data fash", ["fashion_mnist"]),
        ("bench --bench seeds_d", ["seeds_digits"]),
        ("bench --table em_table1", ["em_table1"]),
        ("bench --scale p", ["paper"]),
        ("bench --operator downsampling operator.fac", ["operator.factor="]),
        ("restore --operator mot", ["motion_blur"]),
        ("evaluate --data afh", ["afhq"]),
        ("list dat", ["datasets"]),
        ("new m", ["method", "metric"]),
        ("train method=masked", ["method=masked_loss"]),
        ("train meth", ["method=", "method."]),
        ("train operator=blur operator.sig", ["operator.sigma="]),
        ("train method.posterior.ste", ["method.posterior.steps="]),
        ("train evaluation.lpips=", ["evaluation.lpips=true", "evaluation.lpips=false"]),
        ("train training.device=cu", ["training.device=cuda"]),
        ("train data_", ["data_seed="]),
        # bash breaks words at the equals sign and takes the value alone
        ("train method = masked", ["masked_loss"]),
        ("train data = fash", ["fashion_mnist"]),
        ("train nothing.of=the", []),
    ],
)  # fmt: skip
def test_values_are_offered(line, expected):
    assert offered(line) == expected


def test_every_name_of_a_group_is_offered():
    for group in ("method", "operator", "data", "bench", "table"):
        names = registry.methods() if group == "method" else registry.options(group)
        assert completion.one_of(group)("") == sorted(names)
    assert completion.several_of("method")("em,")[0] != "em,em"
    assert completion.kinds()("") == list(KINDS)


def test_a_shell_is_answered_without_torch(tmp_path):
    code = (
        "import sys\nfrom cleanprior import cli\nsys.argv[0] = 'cleanprior'\n"
        "try:\n    cli._run()\nfinally:\n"
        "    print(sorted({'torch', 'numpy', 'pandas', 'hydra'} & set(sys.modules)))\n"
    )
    asked = "cleanprior train method=em operator."
    told = {"_CLEANPRIOR_COMPLETE": "complete_zsh", "_TYPER_COMPLETE_ARGS": asked}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, **told},
        capture_output=True,
        text=True,
    )
    assert "operator.p=" in done.stdout, done.stderr
    assert done.stdout.splitlines()[-1] == "[]", "libraries that take seconds were loaded"


@pytest.mark.parametrize("name", sorted(COMMAND.commands))
def test_help_ends_with_examples_that_are_commands(name):
    command = COMMAND.commands[name]
    context = typer.Context(command, info_name=name)
    *_, shown = command.get_help(context).partition("Examples:\n")
    assert [line.strip() for line in shown.strip().splitlines()] == list(EXAMPLES[name])
    for line in EXAMPLES[name]:
        program, named, *arguments = shlex.split(line)
        assert (program, named) == ("cleanprior", name)
        given = command.make_context(name, arguments).params
        if name != "bench":
            # A prior to begin from is read when it is composed, and is not at hand.
            overrides = [o for o in given.get("overrides") or () if "training.start=" not in o]
            compose(overrides)
