"""A headless Chromium, controlled by its debugging protocol over pipes."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import subprocess
import sys
import time

import numpy as np
from PIL import Image

CHROMIUM = next(
    filter(
        None,
        map(
            shutil.which, ('chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable')
        ),
    ),
    None,
)
FLAGS = (
    '--headless=new',
    '--no-sandbox',
    '--disable-dev-shm-usage',
    '--disable-gpu-sandbox',
    '--use-angle=swiftshader',
    '--enable-unsafe-swiftshader',
    '--window-size=1280,900',
    '--host-resolver-rules=MAP * ~NOTFOUND',
    '--no-first-run',
    '--disable-extensions',
    '--disable-background-networking',
    '--disable-component-update',
    '--mute-audio',
    '--hide-scrollbars',
)
# The protocol's pipes must be the file descriptors 3 and 4.
LAUNCH = (
    'import fcntl, os, sys; '
    'r, w = (fcntl.fcntl(int(fd), fcntl.F_DUPFD, 10) for fd in sys.argv[1:3]); '
    'os.dup2(r, 3); os.dup2(w, 4); os.execv(sys.argv[3], sys.argv[3:])'
)


class Browser:
    """A headless Chromium, spoken to by its debugging protocol over pipes."""

    def __init__(self, profile, flags=FLAGS):
        from_us, self._out = os.pipe()
        self._in, to_us = os.pipe()
        os.set_blocking(self._in, True)
        self._process = subprocess.Popen(
            [
                sys.executable,
                '-c',
                LAUNCH,
                str(from_us),
                str(to_us),
                CHROMIUM,
                *flags,
                f'--user-data-dir={profile}',
                '--remote-debugging-pipe',
            ],
            pass_fds=(from_us, to_us),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(from_us)
        os.close(to_us)
        self._buffer, self._number, self._session = b'', 0, None
        self.problems, self.requests = [], []

    def call(self, method: str, **params):
        """The result of one command; events that come before it are noted."""
        self._number += 1
        message = {'id': self._number, 'method': method, 'params': params}
        if self._session:
            message['sessionId'] = self._session
        os.write(self._out, json.dumps(message).encode() + b'\0')
        while True:
            answer = self._receive()
            if answer.get('id') == self._number:
                assert 'error' not in answer, answer
                return answer['result']
            self._note(answer.get('method'), answer.get('params', {}))

    def _receive(self) -> dict:
        while b'\0' not in self._buffer:
            piece = os.read(self._in, 1 << 20)
            assert piece, 'the browser has ended'
            self._buffer += piece
        message, self._buffer = self._buffer.split(b'\0', 1)
        return json.loads(message)

    def _note(self, event, params):
        if event == 'Runtime.exceptionThrown':
            self.problems.append(params['exceptionDetails'])
        elif event == 'Runtime.consoleAPICalled' and params['type'] in ('error', 'assert'):
            self.problems.append(params['args'])
        elif event == 'Log.entryAdded' and params['entry']['level'] == 'error':
            self.problems.append(params['entry'])
        elif event == 'Network.requestWillBeSent':
            self.requests.append(params['request']['url'][:80])

    def open(self, path):
        target = self.call('Target.createTarget', url='about:blank')['targetId']
        self._session = self.call('Target.attachToTarget', targetId=target, flatten=True)[
            'sessionId'
        ]
        for domain in ('Page', 'Runtime', 'Log', 'Network'):
            self.call(f'{domain}.enable')
        self.call('Page.navigate', url=path.as_uri())
        self.wait('document.readyState === "complete"')

    def run(self, script: str):
        """The value of an expression in the page."""
        answer = self.call(
            'Runtime.evaluate', expression=script, returnByValue=True, awaitPromise=True
        )
        assert 'exceptionDetails' not in answer, answer
        return answer['result'].get('value')

    def wait(self, condition: str, seconds: float = 25.0):
        end = time.monotonic() + seconds
        while not self.run(condition):
            assert time.monotonic() < end, (condition, self.problems)
            time.sleep(0.1)

    def picture(self, element: str) -> np.ndarray:
        """RGB pixels of an element."""
        self.run(f'document.querySelector("{element}").scrollIntoView()')
        clip = self.run(
            f'(() => {{ const r = document.querySelector("{element}")'
            '.getBoundingClientRect(); return {x: r.x + scrollX, y: r.y + scrollY, '
            'width: r.width, height: r.height, scale: 1} })()'
        )
        data = self.call('Page.captureScreenshot', clip=clip, captureBeyondViewport=True)['data']
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert('RGB')).astype(int)

    def close(self):
        self._session = None
        self._process.terminate()
        self._process.wait(10)
        os.close(self._out)
        os.close(self._in)
