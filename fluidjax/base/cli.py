"""Shared by all commands: flags, help, errors in one line, quiet libraries, a compilation cache.

A command is a module with a docstring that says what it does and gives examples, its own set of
flags, `main`, and

    def command() -> None:
        cli.run(main, FLAGS, takes_arguments=True)
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

from absl import flags, logging
from ml_collections import config_flags

from fluidjax.base import disk, environment
from fluidjax.base.errors import Stopped, UserError
from fluidjax.base.names import AS_HEX
from fluidjax.base.settings import config_file

_FILE_ENDING = re.compile(
    r'\.(nii|nii\.gz|mgz|mgh|hdr|img|zip|json|ckpt|pt|pth|npz|safetensors)$', re.IGNORECASE
)
CONFIG = 'config'  # the flag that names a configuration file, in every command that has one


class Flags(flags.FlagValues):
    """The flags of one command; each method defines one, and returns what holds its value."""

    def add_text(self, name: str, default: str | None, help: str) -> flags.FlagHolder:
        """A flag with any value."""
        return flags.DEFINE_string(name, default, help, self)

    def add_integer(
        self,
        name: str,
        default: int | None,
        help: str,
        least: int | None = None,
        most: int | None = None,
    ) -> flags.FlagHolder:
        """A whole number within limits."""
        return flags.DEFINE_integer(name, default, help, least, most, self)

    def add_number(
        self, name: str, default: float | None, help: str, least: float | None = None
    ) -> flags.FlagHolder:
        """A number."""
        return flags.DEFINE_float(name, default, help, least, flag_values=self)

    def add_switch(self, name: str, default: bool, help: str) -> flags.FlagHolder:
        """A flag without a value: `--name` or `--noname`."""
        return flags.DEFINE_boolean(name, default, help, self)

    def add_choice(
        self, name: str, default: str | None, choices: Sequence[str], help: str
    ) -> flags.FlagHolder:
        """One of some words."""
        return flags.DEFINE_enum(name, default, list(choices), help, self)

    def add_words(self, name: str, default: list[str] | None, help: str) -> flags.FlagHolder:
        """Several words, written `--shape 160 160 160` or `--shape=160,160,160`."""
        holder = flags.DEFINE_list(name, default, help, self)
        self[name].several_words = True
        return holder

    def add_config(self, help: str) -> flags.FlagHolder:
        """A configuration file, `--config`, of which `--config.FIELD=VALUE` overrides any field."""
        return config_flags.DEFINE_config_file(CONFIG, None, help, self)


def quiet_libraries() -> None:
    """Silence banners and cache compiled functions; call it before importing JAX or TensorFlow.

    What the terminal cannot show, such as names of files that are not UTF-8, is printed as `\xfc`.
    """
    environment.set_up()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, 'reconfigure'):
            stream.reconfigure(errors=AS_HEX)
    flags.FLAGS(sys.argv[:1])  # libraries read absl's own flags, which are not used here
    logging.set_verbosity(logging.ERROR)
    logging.set_stderrthreshold(logging.ERROR)


def tell(message: str) -> None:
    """Print a line to standard error, separate from the output of a command."""
    print(message, file=sys.stderr, flush=True)


def run(
    main: Callable[..., None],
    flag_values: Flags,
    takes_arguments: bool = False,
    default_config: str | None = None,
    interrupted: str = 'the same command continues from the last checkpoint',
) -> None:
    """Run a command and exit with its status: 0, 2 for a mistake of the user, 130 after Ctrl-C.

    Args:
        main: the command; called after the flags were read.
        flag_values: its flags.
        takes_arguments: whether `main` takes a list of the words that are not flags.
        default_config: the configuration file without `--config`.
        interrupted: the message after Ctrl-C.
    """
    quiet_libraries()
    try:
        words = _parse(flag_values, sys.modules[main.__module__].__doc__ or '', default_config)
        if words and not takes_arguments:
            raise UserError(f"unexpected argument '{words[0]}': options are written --name=value")
        main(words) if takes_arguments else main()
        status = 0
    except UserError as error:
        status = _fail(str(error))
    except OSError as error:
        status = _fail(disk.line_of(error))
    except Stopped as stopped:
        tell(f'\nfluidjax: {stopped}')
        status = stopped.status
    except KeyboardInterrupt:
        tell(f'\nfluidjax: interrupted; {interrupted}')
        status = 130
    except Exception as error:
        line = environment.explained(error)
        if line is None:
            raise
        status = _fail(line)
    sys.exit(status)


def numbers(name: str, words: list[str], kind: type) -> tuple:
    """The numbers of a flag of several words.

    Raises:
        UserError: a word is not a number.
    """
    try:
        return tuple(kind(word) for word in words)
    except ValueError:
        number = 'whole numbers' if kind is int else 'numbers'
        raise UserError(f"--{name}: '{','.join(words)}' must be {number}") from None


def _parse(flag_values: Flags, usage: str, default_config: str | None) -> list[str]:
    """Read `sys.argv`; returns the words that are not flags.

    Raises:
        UserError: any mistake in a flag or in a configuration file.
        SystemExit: help was asked for, and printed.
    """
    if {'--help', '-h', '--helpshort', '--helpfull'} & set(sys.argv[1:]):
        print(f'{usage.strip()}\n\nOptions:\n{_flags_help(flag_values)}')
        raise SystemExit(0)
    arguments = _join_words([_spelled(word, flag_values) for word in sys.argv], flag_values)
    if CONFIG in flag_values:
        arguments = _with_config_file(arguments, default_config)
    original, sys.argv = sys.argv, arguments  # ml_collections reads fields to override from it
    try:
        words = flag_values(arguments)[1:]
        _check_words(flag_values)
        return words
    except UserError:
        raise
    except flags.UnrecognizedFlagError as error:
        message = _file_as_option(arguments, error.flagname) or str(error)
    except (AttributeError, KeyError) as error:
        message = _no_field(str(error))
    except (flags.Error, TypeError, ValueError) as error:
        message = environment.explained(error) or str(error)
    finally:
        sys.argv = original
    raise UserError(_last_line(message))


def _check_words(flag_values: Flags) -> None:
    """Check that flags of several words which were given have words, and no empty ones.

    Raises:
        UserError: one has not.
    """
    for name in flag_values:
        flag = flag_values[name]
        if hasattr(flag, 'several_words') and flag.present and not all(flag.value or ['']):
            what = f"'{','.join(flag.value)}' has an empty value" if flag.value else 'has no value'
            raise UserError(f'--{name}: {what}; write --{name}=A,B, or leave the option out')


def _file_as_option(arguments: Sequence[str], name: str) -> str:
    """The message if an unknown option is a file or is called like one, else ''."""
    for word in arguments[1:]:
        if word.lstrip('-').partition('=')[0] != name:
            continue
        if os.path.lexists(word) or _FILE_ENDING.search(word):
            return f"'{word}' looks like an option; if it is a file write ./{word}"
    return ''


def _last_line(message: str) -> str:
    """The last line of a message; ml_collections quotes errors in a file with their traceback."""
    if 'Traceback' not in message:
        return message
    return message.strip().splitlines()[-1].partition(': ')[2]


def _flags_help(flag_values: Flags) -> str:
    """The help of every flag, without the name of the module that defines it."""
    text = flag_values.get_help(include_special_flags=False)
    return '\n'.join(line for line in text.splitlines() if line.startswith('  ')).rstrip()


def _spelled(word: str, flag_values: Flags) -> str:
    """A flag as it was defined: `--n_jobs` and `--n-jobs` are the same."""
    match = re.fullmatch(r'(--?)([\w-]+)(=.*)?', word, re.DOTALL)
    if not match or match[2] in flag_values:
        return word
    for name in (match[2].replace('_', '-'), match[2].replace('-', '_')):
        if name in flag_values:
            return f'{match[1]}{name}{match[3] or ""}'
    return word


def _join_words(arguments: list[str], flag_values: Flags) -> list[str]:
    """`--shape 160 160 160` as absl reads it: `--shape=160,160,160`."""
    joined, rest = [], list(arguments)
    while rest:
        word = rest.pop(0)
        name = word.lstrip('-')
        if word != name and name in flag_values and hasattr(flag_values[name], 'several_words'):
            values = []
            while rest and not re.match(r'--?[A-Za-z]', rest[0]):
                values.append(rest.pop(0))
            word = f'--{name}={",".join(values)}'
        joined.append(word)
    return joined


def _with_config_file(arguments: list[str], default: str | None) -> list[str]:
    """The arguments with `--config=FILE` as a path that exists, before any `--config.FIELD`.

    Raises:
        UserError: there is no such file.
    """
    named, others, rest = None, arguments[:1], arguments[1:]
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition('=')
        if name in (f'--{CONFIG}', f'-{CONFIG}'):
            named = value if equals else (rest.pop(0) if rest else '')
        else:
            others.append(word)
    if named is None and default is None:
        return arguments
    path, colon, argument = (default if named is None else named).partition(':')
    return [others[0], f'--{CONFIG}={config_file(path)}{colon}{argument}', *others[1:]]


def _no_field(text: str) -> str:
    """The message about an unknown field, whose name the error of ml_collections quotes."""
    name = re.search(r'[\w.]+', text)
    near = re.search(r'Did you mean "(\w+)"', text)
    advice = f'did you mean {near[1]}?' if near else 'the configuration file shows its fields'
    return f"the configuration has no field '{name[0] if name else text}'; {advice}"


def _fail(message: Any) -> int:
    tell(f'fluidjax: error: {" ".join(str(message).split())}')
    return 2
