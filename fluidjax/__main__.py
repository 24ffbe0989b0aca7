"""The command `fluidjax VERB` (`python -m fluidjax VERB` is the same)."""

from __future__ import annotations

import difflib
import importlib
import sys

from fluidjax.base import __version__

# Each verb, the module that serves it, and what it does.
VERBS = {
    'demo': ('fluidjax.runs.demo', 'train and evaluate on the embedded cohort, without any scans'),
    'predict': ('fluidjax.predict.__main__', 'find anomalies in scans'),
    'prepare': ('data_pipelines.prepare', 'preprocess a folder of scans for training'),
    'train': ('fluidjax.main', 'train a method, or go on with its training'),
    'eval': ('fluidjax.eval', 'score a trained run, choose its thresholds, write a report'),
    'export': ('fluidjax.runs.export', 'put a trained run into one file to share'),
    'convert': ('fluidjax.runs.convert', 'make a run from published PyTorch weights'),
    'randomize': ('fluidjax.randomize.__main__', 'paint simulated lesions into healthy scans'),
    'sweep': ('fluidjax.sweep.__main__', 'train and evaluate many configurations or seeds'),
    'benchmark': ('fluidjax.sweep.benchmark', 'train and score all methods with the same budget'),
    'bench': ('fluidjax.bench.__main__', 'measure speed and memory on this machine'),
}


def usage() -> str:
    """The verbs, with a sentence each."""
    width = max(map(len, VERBS))
    lines = [f'  {verb:{width}s}  {sentence}' for verb, (_, sentence) in VERBS.items()]
    return '\n'.join(
        [
            'usage: fluidjax VERB [ARGUMENTS]',
            '',
            'Find what is abnormal in a brain MRI, trained on healthy brains only.',
            'For research. Not a medical device, not for diagnosis.',
            '',
            *lines,
            '',
            'fluidjax VERB --help shows the options of a verb, with examples.',
        ]
    )


def main() -> None:
    """Hand the words after the verb to the module that serves it."""
    verb, *words = sys.argv[1:] or ['--help']
    if verb in ('--help', '-h', 'help'):
        print(usage())
    elif verb == '--version':
        print(f'fluidjax {__version__}')
    elif verb in VERBS:
        sys.argv = [f'fluidjax {verb}', *words]
        importlib.import_module(VERBS[verb][0]).command()
    else:
        near = difflib.get_close_matches(verb, VERBS, n=1)
        advice = f'did you mean {near[0]}?' if near else f'there are {", ".join(VERBS)}'
        print(f"fluidjax: error: no verb '{verb}'; {advice}", file=sys.stderr)
        sys.exit(2)


if __name__ == '__main__':
    main()
