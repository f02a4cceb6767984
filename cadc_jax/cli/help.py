"""The screens of `cadc --help` and `cadc COMMAND --help`, made from what the program knows.

The docstring of a command's function says what it does and shows examples, lines that begin with
'cadc'. The help of a flag that belongs to some commands begins with their names: 'train, verify: '.
"""

import inspect
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence

from absl import flags

_WIDTH = 98
Commands = Mapping[str, Callable[..., None]]


def overview(
    introduction: str, commands: Commands, known: Sequence[flags.Flag], default: str
) -> str:
    """What the program does, its commands, and the flags of all of them and of the default one."""
    lines = [introduction.strip(), "", "Commands (cadc COMMAND --help says more):", ""]
    width = max(map(len, commands))
    for name, function in commands.items():
        lines.append(f"    {name:<{width}}  {_summary(function)}")
    shown = [flag for flag in known if _split(flag, commands)[0] in ([], [default])]
    return "\n".join([*lines, "", "Flags:", "", *_flags(shown, commands)])


def of_command(name: str, commands: Commands, known: Sequence[flags.Flag]) -> str:
    """What one command does, an example, and its flags."""
    text = inspect.getdoc(commands[name]) or ""
    own = [flag for flag in known if name in _split(flag, commands)[0]]
    common = [flag for flag in known if not _split(flag, commands)[0]]
    lines = [f"cadc {name}: " + re.sub(r"^cadc ", "    cadc ", text, flags=re.MULTILINE), ""]
    if own:
        lines += ["Flags:", "", *_flags(own, commands), ""]
    return "\n".join([*lines, "Flags of all commands:", "", *_flags(common, commands)])


def _summary(function: Callable[..., None]) -> str:
    return (inspect.getdoc(function) or "").split("\n")[0]


def _split(flag: flags.Flag, commands: Commands) -> tuple[list[str], str]:
    """The commands that a flag belongs to (none: all), and its help without them."""
    text = re.sub(r"^<.*?>: ", "", flag.help)  # the values of an enum, which absl puts there
    match = re.match(r"([a-z]+(?:, [a-z]+)*): ", text)
    if match is None or not set(match[1].split(", ")) <= set(commands):
        return [], text
    text = text[match.end() :]
    return match[1].split(", "), text[0].upper() + text[1:]


def _flags(shown: Sequence[flags.Flag], commands: Commands) -> list[str]:
    lines: list[str] = []
    for flag in shown:
        _, text = _split(flag, commands)
        if isinstance(flag, flags.EnumFlag):
            text += f" One of {', '.join(flag.parser.enum_values)}."
        if flag.default is not None and not flag.boolean:
            text += f" Default: {flag.default}."
        left = f"    --{'[no]' if flag.boolean else ''}{flag.name}"
        wrapped = textwrap.wrap(text, _WIDTH - 20)
        if len(left) > 18:
            lines.append(left)
            left = ""
        lines.append(f"{left:<20}{wrapped[0]}")
        lines += [" " * 20 + line for line in wrapped[1:]]
    return lines
