"""docs/tutorial.md does what it says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest


@pytest.mark.slow
def test_the_tutorials_code_runs(checkout, tmp_path, monkeypatch):
    text = (checkout / 'docs' / 'tutorial.md').read_text()
    blocks = list(re.finditer(r'^```python\n(.*?)^```$', text, re.M | re.S))
    assert len(blocks) >= 7
    monkeypatch.chdir(tmp_path)
    names: dict = {'__name__': 'tutorial'}
    for block in blocks:
        line = text.count('\n', 0, block.start()) + 1
        source = '\n' * line + block[1]  # so that an error names the line of the tutorial
        exec(compile(source, str(checkout / 'docs' / 'tutorial.md'), 'exec'), names)
    for made in ('store/summary.html', 'run/eval/report.html', 'mask.nii.gz', 'model.zip'):
        assert Path(made).stat().st_size > 0, made
    assert names['again'].threshold == names['found'].threshold
