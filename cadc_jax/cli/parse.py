"""The command line: absl's flags, bundled configurations, help screens, and hints at typos.

The docstring of a command's module says what the command does and shows examples.
"""

import os
import traceback
from collections.abc import Mapping
from types import ModuleType
from typing import NoReturn

from absl import flags

import cadc_jax
from cadc_jax.cli import exits
from cadc_jax.errors import CadcError, ConfigError
from cadc_jax.run import bundled_configs
from cadc_jax.runtime.text import nearest

_SEVERAL = "; for several rates: cadc study --config=FILE --rates=0.1,0.01"
REMOVED = {  # last part of the name of a field that there was -> what to do
    "model": "devices.model is gone, leave it out: split tables are split over all devices",
}

Commands = Mapping[str, ModuleType]  # command -> its module in `cli`


def parse(argv: list[str], introduction: str, commands: Commands) -> list[str]:
    """Parses flags with absl; an error is one line and exit code 1, --help a screen.

    Args:
      argv: the command line, the program first.
      introduction: what the program is, for its help screen.
      commands: the commands; the first is the default one.

    Returns:
      The words that are no flags, the program first.
    """
    if {"--help", "-help", "-h"} & set(argv):
        _help(argv, introduction, commands)
    if "--version" in argv:
        exits.show(f"cadc_jax {cadc_jax.__version__}")
    try:
        return flags.FLAGS([_with_bundled_config(word) for word in _with_joined_config(argv)])
    except flags.UnrecognizedFlagError as error:
        if error.flagname.startswith("config."):
            exits.fail(f"--{error.flagname}: give the configuration as well, as --config=FILE")
        hint = nearest(error.flagname, flags.FLAGS, "--")
        exits.fail(f"unknown option --{error.flagname}{hint}; 'cadc COMMAND --help' lists them")
    except flags.IllegalFlagValueError as error:
        why = error.__context__  # absl's text shows its arguments as a tuple
        start = str(error).partition(": ")[0]
        hint = _SEVERAL if start.startswith("flag --config.rate=") else ""
        exits.fail(f"{start}: {why.args[0] if why else 'no such value'}{hint}")
    except (CadcError, flags.Error, OSError, TypeError, ValueError) as error:
        exits.fail(error)
    except Exception as error:  # config_flags runs the configuration file, which may raise anything
        if isinstance(error, AttributeError | KeyError) and not getattr(error, "name", None):
            # A field that does not exist: ConfigDict quotes its text once or twice.
            text = str(error).replace("\\n", ". ").replace("\\", "").replace("'", "")
            gone = "".join(f"; {x}" for name, x in REMOVED.items() if f'"{name}"' in text)
            exits.fail(f"no such field: {text}{gone}")
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = "" if isinstance(error, SyntaxError) else f" ({place.filename}:{place.lineno})"
        exits.fail(f"--config: the file cannot be used: {type(error).__name__}: {error}{where}")


def _with_joined_config(argv: list[str]) -> list[str]:
    """Joins '--config FILE' to '--config=FILE'."""
    words, joined = iter(argv), []
    for word in words:
        joined.append(f"{word}={next(words, '')}" if word in ("--config", "-config") else word)
    return joined


def _with_bundled_config(argument: str) -> str:
    """Replaces --config=configs/NAME.py, if there is no such file, by the bundled one."""
    name, _, path = argument.partition("=")
    if name.lstrip("-") != "config" or os.path.exists(path.partition(":")[0]):
        return argument
    return f"{name}={bundled_configs.find(path, '--config=')}"


def check_flags(command: str, commands: Commands) -> None:
    """Refuses flags that belong to other commands.

    Raises:
      ConfigError: naming the first such flag and the commands that take it.
    """
    own = _flags_of(commands[command])
    for name in sorted(set().union(*map(_flags_of, commands.values())) - own):
        if flags.FLAGS[name].present:
            takers = [other for other, module in commands.items() if name in _flags_of(module)]
            raise ConfigError(f"--{name}: 'cadc {command}' has no such option; {_listed(takers)}")


def _flags_of(module: ModuleType) -> set[str]:
    return {flag.name for flag in flags.FLAGS.get_key_flags_for_module(module)}


def _listed(commands: list[str]) -> str:
    return f"{', '.join(commands)} {'takes' if len(commands) == 1 else 'take'} it"


def _help(argv: list[str], introduction: str, commands: Commands) -> NoReturn:
    """Shows the program's screen, or the one of the command that is named, and ends."""
    command = next((word for word in argv[1:] if word in commands), None)
    if command is not None:
        text = (commands[command].__doc__ or "").rstrip()
        exits.show(f"cadc {command}: {text}\n\nOptions:\n\n{_options(commands[command])}")
    width = max(map(len, commands))
    lines = (
        f"    {name:<{width}}  {(module.__doc__ or '').splitlines()[0]}"
        for name, module in commands.items()
    )
    default = next(iter(commands))
    exits.show(
        f"{introduction.strip()}\n\nCommands ('cadc COMMAND --help' says more):\n\n"
        + "\n".join(lines)
        + f"\n\nOptions of 'cadc {default}':\n\n{_options(commands[default])}"
    )


def _options(module: ModuleType) -> str:
    """absl's help for the key flags of a module, without the line that names the module."""
    return flags.FLAGS.module_help(module).partition(":\n")[2]
