"""What all command lines share: errors without traceback, quiet libraries, compiled code kept."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

from absl import app, flags, logging

from fluidjax.errors import Stopped, UserError


def quiet_libraries() -> None:
    """Before JAX or TensorFlow are imported: no banners, and a cache of compiled functions."""
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
    os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')
    cache = Path(os.environ.get('XDG_CACHE_HOME', Path.home() / '.cache')) / 'fluidjax' / 'xla'
    os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(cache))
    os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '1')
    logging.set_verbosity(logging.ERROR)
    logging.set_stderrthreshold(logging.ERROR)


def tell(message: str) -> None:
    """A line for the person at the terminal, beside progress bars."""
    print(message, file=sys.stderr, flush=True)


def run(
    main: Callable[..., None], takes_arguments: bool = False,
    interrupted: str = 'the same command continues from the last checkpoint',
) -> None:
    """Run a command; a `UserError` becomes one line and exit status 2.

    Args:
        main: the command; reads `absl.flags.FLAGS`.
        takes_arguments: whether words that are no options are handed to it, as a list.
        interrupted: what a person who stops it should know.
    """

    def guarded(arguments: list[str]) -> int:
        words = arguments[1:]
        if words and not takes_arguments:
            return _fail(f"unexpected argument '{words[0]}': options are written --name=value")
        try:
            main(words) if takes_arguments else main()
        except UserError as error:
            return _fail(str(error))
        except OSError as error:
            where = error.filename or 'a file'
            return _fail(f'{where}: {error.strerror or error}; check the path, its rights and the '
                         'space left')
        except Stopped as stopped:
            tell(f'\nfluidjax: {stopped}')
            return stopped.status
        except KeyboardInterrupt:
            tell(f'\nfluidjax: interrupted; {interrupted}')
            return 130
        return 0

    quiet_libraries()
    try:
        app.run(guarded, flags_parser=_parse_flags)
    except UserError as error:
        sys.exit(_fail(str(error)))


def with_config(arguments: list[str], default: Path) -> list[str]:
    """The arguments with `--config` naming a file: the default one where they name none."""
    if any(word.lstrip('-').partition('=')[0] == 'config' for word in arguments
           if word.startswith('-')):
        return arguments
    return [arguments[0], f'--config={default}', *arguments[1:]]


def join_lists(arguments: list[str], names: tuple[str, ...]) -> list[str]:
    """`--shape 160 160 160` as absl reads it: `--shape=160,160,160`."""
    joined, rest = [], list(arguments)
    while rest:
        word = rest.pop(0)
        if word.lstrip('-') in names and word.startswith('-'):
            values = []
            while rest and not rest[0].startswith('--') and _is_number(rest[0].split(',')[0]):
                values.append(rest.pop(0))
            word = f'{word}={",".join(values)}'
        joined.append(word)
    return joined


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def numbers(name: str, words: list[str], kind: type) -> tuple:
    """The numbers of a list flag.

    Raises:
        UserError: a word that is none.
    """
    try:
        return tuple(kind(word) for word in words)
    except ValueError:
        raise UserError(f"--{name}: '{','.join(words)}' must be numbers, e.g. --{name} 160 160 160"
                        ) from None


def _parse_flags(arguments: list[str]) -> list[str]:
    """absl's parser; whatever is wrong with a flag is one line, also inside a config file."""
    if {'--help', '-h', '--helpshort'} & set(arguments[1:]):
        print((sys.modules['__main__'].__doc__ or '').strip(), '\n\nOptions:')
        print(flags.FLAGS.module_help(sys.modules['__main__']))
        raise SystemExit(0)
    _check_config_file(arguments)
    try:
        return flags.FLAGS(arguments)
    except UserError:
        raise
    except (AttributeError, KeyError) as error:
        message = _no_field(str(error))
    except (flags.Error, TypeError, ValueError) as error:
        message = str(error)
    if 'Traceback' in message:  # a config file's own error, quoted by ml_collections with its trace
        message = message.strip().splitlines()[-1].partition(': ')[2]
    raise UserError(' '.join(message.split()))


def _no_field(text: str) -> str:
    """A config's complaint about a field, which quotes the name and may know a nearer one."""
    name = re.search(r'[\w.]+', text)
    meant = re.search(r'Did you mean "(\w+)"', text)
    advice = f'did you mean {meant[1]}?' if meant else 'the config file shows those there are'
    return f"the configuration has no field '{name[0] if name else text}'; {advice}"


def _check_config_file(arguments: list[str]) -> None:
    """See that the file of `--config=FILE:ARGUMENT` is there, before it is run."""
    for word, following in zip(arguments, [*arguments[1:], ''], strict=True):
        name, _, value = word.partition('=')
        if name.lstrip('-') == 'config' and name.startswith('-'):
            path = (value or following).partition(':')[0]
            if not Path(path).is_file():
                raise UserError(f"--config: no file '{path}'; from the top of the checkout try "
                                '--config=configs/ldm.py:demo')


def _fail(message: str) -> int:
    print(f'fluidjax: error: {" ".join(message.split())}', file=sys.stderr)
    return 2
