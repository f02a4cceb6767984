"""The command line: absl's flags, configurations that came with the package, and what was meant."""

import difflib
import os
import pathlib
import sys
import traceback
from collections.abc import Iterable
from typing import NoReturn

from absl import flags

from cadc_jax.cli import exits, help
from cadc_jax.cli.help import Commands
from cadc_jax.errors import CadcError, ConfigError
from cadc_jax.run import bundled_configs


def parse(argv: list[str], introduction: str, commands: Commands) -> list[str]:
    """absl's parser of flags; what is wrong ends the program in one line, and --help in a screen.

    config_flags raises plain errors for a bad file, field or value.

    Args:
      argv: the command line, the program first.
      introduction: what the program says of itself.
      commands: its commands by name; the first is the default one.
    """
    if {"--help", "-help", "-h"} & set(argv):
        _help(argv, introduction, commands)
    try:
        return flags.FLAGS([_with_installed_config(word) for word in _with_joined_config(argv)])
    except flags.UnrecognizedFlagError as error:
        if error.flagname.startswith("config."):
            exits.fail(f"--{error.flagname}: give the configuration as well, as --config=FILE")
        hint = nearest(error.flagname, flags.FLAGS, "--")
        exits.fail(f"unknown option --{error.flagname}{hint}; 'cadc COMMAND --help' lists them")
    except flags.IllegalFlagValueError as error:
        why = error.__context__  # absl's text shows its arguments as a tuple
        exits.fail(f"{str(error).partition(': ')[0]}: {why.args[0] if why else 'no such value'}")
    except (CadcError, flags.Error, OSError, TypeError, ValueError) as error:
        exits.fail(error)
    except Exception as error:
        if isinstance(error, AttributeError | KeyError) and not getattr(error, "name", None):
            # ConfigDict's, of a field that there is not; its text is quoted, once or twice.
            text = str(error).replace("\\n", ". ").replace("\\", "").replace("'", "")
            exits.fail(f"no such field: {text}")
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = "" if isinstance(error, SyntaxError) else f" ({place.filename}:{place.lineno})"
        exits.fail(f"--config: the file cannot be used: {type(error).__name__}: {error}{where}")


def _with_joined_config(argv: list[str]) -> list[str]:
    """'--config FILE' as '--config=FILE'."""
    words, joined = iter(argv), []
    for word in words:
        joined.append(f"{word}={next(words, '')}" if word in ("--config", "-config") else word)
    return joined


def nearest(word: str, known: Iterable[str], before: str = "") -> str:
    """A hint at what may have been meant, or nothing."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f", did you mean '{before}{near[0]}'?" if near else ""


def _with_installed_config(argument: str) -> str:
    """Where there is no --config=configs/NAME.py, the one that came with the package."""
    name, _, path = argument.partition("=")
    if name.lstrip("-") != "config" or os.path.exists(path.partition(":")[0]):
        return argument
    found = {f"configs/{file.name}": file for file in bundled_configs.configs().values()}
    if path in found:
        return f"{name}={found[path]}"
    hint = nearest(f"configs/{pathlib.Path(path).stem}.py", found)
    raise ConfigError(
        f"--config={path}: no such file{hint}; the package has {', '.join(found) or 'none'}"
    )


def _help(argv: list[str], introduction: str, commands: Commands) -> NoReturn:
    """Shows the program's screen, or that of the command that is named, and ends."""
    by_module = flags.FLAGS.flags_by_module_dict()
    known = next(found for found in by_module.values() if any(x.name == "workdir" for x in found))
    if "config" not in {flag.name for flag in known}:
        known = [flags.FLAGS["config"], *known]
    command = next((word for word in argv[1:] if word in commands), None)
    screen = help.of_command(command, commands, known) if command else None
    print(screen or help.overview(introduction, commands, known, next(iter(commands))))
    sys.exit(0)
