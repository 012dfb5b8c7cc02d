"""The `cmml` command."""

from __future__ import annotations

import argparse
import glob
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from cmml_ros.errors import BagError, CmmlError

# Said here too, so that --help need not load the simulation.
SCENES = ('plane', 'column', 'tunnel')
SENSORS = ('depth_camera', 'line_profiler', 'tof_lidar')
REGISTRATIONS = ('tf', 'refine', 'match')
LOOKS = ('fast', 'path')
MASKS = ('true', 'network')


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status of `cmml`: 0, 2 for an error that is explained in one line, 130 after Ctrl-C."""
    options = _make_parser().parse_args(arguments)
    try:
        options.run(options)
    except (CmmlError, OSError) as error:
        print(f'cmml: error: {error}', file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print('cmml: interrupted', file=sys.stderr)
        return 130
    return 0


def _whole(least: int) -> Callable[[str], int]:
    """Reads a whole number of `least` or more."""

    def read(text: str) -> int:
        if not text.strip().isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f'must be a whole number from {least} on, got {text}')
        return int(text)

    return read


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='cmml', description='Find airholes in concrete with a camera and a range sensor, and measure them.'
    )
    commands = parser.add_subparsers(metavar='COMMAND', required=True)
    _add_simulate(commands)
    _add_analyze(commands)
    _add_compare(commands)
    _add_train(commands)
    _add_evaluate(commands)
    _add_export(commands)
    _add_benchmark(commands)
    return parser


def _add_simulate(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        'simulate',
        help='a recording of a wall whose airholes are known',
        description='Write a rosbag2 folder of a robot that moves along a simulated wall, with the truth about every '
        'airhole in truth.json; or, with --dataset, pictures with labels and depths to learn from.',
    )
    parser.add_argument('out', type=Path, metavar='OUT', help='new folder')
    parser.add_argument('--scene', choices=SCENES, default=SCENES[0], help='shape of the wall (default: %(default)s)')
    parser.add_argument('--sensor', choices=SENSORS, default=SENSORS[0], help='range sensor (default: %(default)s)')
    parser.add_argument('--frames', type=int, default=10, metavar='N', help='frames or pictures (default: %(default)s)')
    parser.add_argument('--seed', type=int, default=0, metavar='N', help='the same number gives the same data')
    parser.add_argument(
        '--look', choices=LOOKS, default=LOOKS[0], help='simple shading, or path tracing (default: %(default)s)'
    )
    parser.add_argument(
        '--rate', type=float, default=5.0, metavar='HZ', help='frames per second (default: %(default)s)'
    )
    parser.add_argument(
        '--distance', type=float, default=0.5, metavar='M', help='from the camera to the wall (default: %(default)s)'
    )
    parser.add_argument('--noise', type=float, metavar='M', help='white noise of the range (default: of the sensor)')
    parser.add_argument('--dataset', action='store_true', help='write images/, labels/ and depths/ instead of a bag')
    parser.set_defaults(run=_simulate)


def _simulate(options: argparse.Namespace) -> None:
    from cmml_ros.simulation.scenario import Scenario, simulate_bag, simulate_dataset

    scenario = Scenario(
        kind=options.scene,
        sensor_name=options.sensor,
        seed=options.seed,
        look=options.look,
        rate_hz=options.rate,
        distance_m=options.distance,
        range_noise_m=options.noise,
    )
    write = simulate_dataset if options.dataset else simulate_bag
    write(options.out, scenario, options.frames)
    print(options.out)


def _add_analyze(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        'analyze',
        help='from a recording to tables and a report',
        description='Measure every airhole in rosbag2 recordings (MCAP or SQLite, split or compressed) and write '
        'defects.csv, defects.parquet, defects.geojson, frames.csv, observations.csv, summary.json, report.html and '
        'report.pdf. Stopped or killed, the same command goes on where it was.',
    )
    parser.add_argument(
        'bags',
        nargs='+',
        metavar='BAG',
        help='rosbag2 folder, .mcap or .db3 file, folder of bags, or pattern like "runs/*"; all go into one map',
    )
    parser.add_argument('--out', type=Path, required=True, metavar='DIR', help='folder of the results, made if missing')
    parser.add_argument('--config', type=Path, metavar='FILE', help='settings as YAML, plain or a ROS parameter file')
    parser.add_argument('--model', metavar='NAME', help='shipped weights or a .safetensors file, over --config')
    parser.add_argument(
        '--registration',
        choices=REGISTRATIONS,
        help='extrinsic from /tf, corrected, or found without it (default: of FILE)',
    )
    parser.add_argument('--site', metavar='TEXT', help='what is inspected, for the cover of the report')
    parser.add_argument('--robot', metavar='TEXT', help='name of the robot, for the cover of the report')
    parser.add_argument('--image-topic', metavar='T', help='default: the only Image or CompressedImage topic')
    parser.add_argument('--points-topic', metavar='T', help='default: the only PointCloud2 topic')
    parser.add_argument('--camera-info-topic', metavar='T', help='default: the one beside the image topic')
    parser.add_argument('--bag-out', type=Path, metavar='BAG', help='also write the results as a new rosbag2 folder')
    parser.add_argument('--workers', type=_whole(1), default=1, metavar='N', help='processes (default: %(default)s)')
    parser.add_argument('--cluster', metavar='ADDRESS', help='run on this Ray cluster, HEAD:6379 or ray://HEAD:10001')
    parser.add_argument('--no-pdf', action='store_true', help='do not print report.pdf, which needs Chromium')
    parser.set_defaults(run=_analyze)


def _analyze(options: argparse.Namespace) -> None:
    from cmml_ros.analyze import analyze
    from cmml_ros.calibration import NOT_CHECKED, CalibrationStatus
    from cmml_ros.config import InspectorConfig, load_config

    config = load_config(InspectorConfig, options.config) if options.config else InspectorConfig()
    if options.model:
        config = replace(config, detection=replace(config.detection, model=options.model))
    if options.registration:
        config = replace(config, registration=replace(config.registration, mode=options.registration))
    cover = {name: text for name in ('site', 'robot') if (text := getattr(options, name))}
    config = replace(config, report=replace(config.report, **cover))
    summary = analyze(
        _find_bags(options.bags, options.out),
        options.out,
        config,
        image_topic=options.image_topic,
        points_topic=options.points_topic,
        camera_info_topic=options.camera_info_topic,
        bag_out=options.bag_out,
        workers=options.workers,
        cluster=options.cluster,
        pdf=not options.no_pdf,
    )
    if summary.frames_in_map == 0:
        map_frame = config.sync.map_frame
        text = f'no frame is placed in "{map_frame}" (sync.map_frame): airholes are listed once for each frame'
        print(f'cmml: note: {text}', file=sys.stderr)
    incomplete = [f'{count} of {summary.frames} frames: {reason}' for reason, count in summary.incomplete.items()]
    check = summary.calibration.check if summary.calibration else NOT_CHECKED
    contradiction = [check.reason] if check.in_doubt or check.status is CalibrationStatus.DRIFTED else []
    for note in (*summary.warnings, *summary.errors, *incomplete, *contradiction):
        print(f'cmml: note: {note}', file=sys.stderr)
    placed, unplaced = summary.airholes - summary.unplaced, summary.unplaced
    found = [f'{placed} airholes'] if placed or not unplaced else []
    found += [f'{unplaced} sightings without a place in the map'] if unplaced else []
    print(f'{" and ".join(found)} in {summary.frames} frames: {options.out / "report.html"}')


def _add_compare(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        'compare',
        help='two analyses of the same surface',
        description='Match the airholes of two output folders of `cmml analyze`: how many are the same, new in B, gone '
        'from A, and which differ by more than their deviations allow. Writes compare.csv and compare.png.',
    )
    parser.add_argument('run_a', type=Path, metavar='RUN_A', help='output folder of the first analysis')
    parser.add_argument('run_b', type=Path, metavar='RUN_B', help='output folder of the second one')
    parser.add_argument('--out', type=Path, default=Path('out/compare'), metavar='DIR', help='default: %(default)s')
    parser.set_defaults(run=_compare)


def _compare(options: argparse.Namespace) -> None:
    from cmml_ros.report.compare import QUANTITIES, compare

    comparison = compare(options.run_a, options.run_b, options.out)
    counts = {kind: comparison.count(kind) for kind in ('matched', 'new', 'gone')}
    print(f'{counts["matched"]} matched, {counts["new"]} new in {options.run_b}, {counts["gone"]} gone')
    if comparison.unplaced:
        print(f'{comparison.unplaced} of both without a position are left out')
    if comparison.identical:
        print('no difference')
    for row in comparison.changed:
        texts = [
            f'{name} {row[f"{name}_a"]} -> {row[f"{name}_b"]} ({float(row[f"{name}_deviations"]):+.1f} deviations)'
            for name, _ in QUANTITIES
            if row[f'{name}_deviations']
        ]
        print(f'  {row["defect_id_a"]} = {row["defect_id_b"]}: {", ".join(texts)}')
    print(options.out / 'compare.csv')


def _find_bags(names: Sequence[str], out: Path) -> list[Path]:
    """The bags that names stand for: themselves, what a pattern matches, and those in a folder that is none.

    Patterns do not stand for `out`, so that results may lie among bags and the same command goes on.
    """
    found: list[Path] = []
    for name in names:
        is_pattern = glob.has_magic(name) and not Path(name).exists()
        matches = [Path(one) for one in sorted(glob.glob(name))] if is_pattern else [Path(name)]
        if is_pattern and not (out.is_dir() and _is_bag(out)):
            matches = [one for one in matches if one.resolve() != out.resolve()]
        if not matches:
            raise BagError(f'{name}: matches no bag')
        for path in matches:
            inside = sorted(filter(_is_bag, path.iterdir())) if path.is_dir() and not _is_bag(path) else []
            found += inside or [path]
    return list(dict.fromkeys(found))


def _is_bag(path: Path) -> bool:
    """Whether it is a bag's folder; one whose recording was interrupted has no metadata.yaml."""
    from cmml_ros.bag.reader import is_recorded

    return path.is_dir() and any(map(is_recorded, path.iterdir()))


def _add_train(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        'train',
        help='a network from simulated scenes',
        description='Render path-traced walls, train on them, and write weights.safetensors. Stopped or killed, the '
        'same command goes on from the last checkpoint.',
    )
    parser.add_argument(
        '--config', type=Path, required=True, metavar='FILE', help='settings, like config/train_small.yaml'
    )
    parser.add_argument(
        '--out', type=Path, required=True, metavar='DIR', help='folder of views, checkpoint and weights'
    )
    parser.add_argument(
        '--backgrounds',
        type=Path,
        nargs='+',
        default=[],
        metavar='DIR',
        help='folders of pictures of concrete without airholes, to put under simulated ones',
    )
    parser.add_argument(
        '--data',
        type=Path,
        nargs='+',
        default=[],
        metavar='DIR',
        help='folders of own labelled pictures: images/, labels/, and depths/ or clouds/ where there are any',
    )
    parser.set_defaults(run=_train)


def _train(options: argparse.Namespace) -> None:
    from cmml_ros.training.train import train

    print(train(options.config, options.out, options.backgrounds, options.data))


def _add_evaluate(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        'evaluate',
        help='how right network and measurement are, on simulated walls',
        description='Simulate walls that training never saw and print how well the network finds airholes and lays '
        'clouds on pictures, beside what one would use instead; or, with --measurement, how wrong areas, depths and '
        'volumes are and how often their 95 % intervals hold the truth. The figures also go to DIR.',
    )
    parser.set_defaults(run=_evaluate_network)
    parser.add_argument(
        '--measurement',
        dest='run',
        action='store_const',
        const=_evaluate_measurement,
        help='area, depth and volume by sensor, distance, incidence and size, instead of the network',
    )
    parser.add_argument(
        '--out', type=Path, default=Path('out/evaluation'), metavar='DIR', help='results (default: %(default)s)'
    )
    parser.add_argument('--config', type=Path, metavar='FILE', help='settings as YAML, plain or a ROS parameter file')
    parser.add_argument(
        '--masks', choices=MASKS, default=MASKS[0], help='of the measurement: exact, or found (default: %(default)s)'
    )
    parser.add_argument(
        '--full', action='store_true', help='of the measurement: the whole grid, not the one of a minute or two'
    )
    parser.add_argument(
        '--frames',
        type=_whole(1),
        default=16,
        metavar='N',
        help='of the network: views a sensor (default: %(default)s)',
    )
    parser.add_argument(
        '--look', choices=LOOKS, default=LOOKS[0], help='of the network: how views are rendered (default: %(default)s)'
    )
    parser.add_argument(
        '--seed', type=_whole(0), default=0, metavar='N', help='the same number gives the same airholes'
    )


def _evaluate_network(options: argparse.Namespace) -> None:
    from cmml_ros.config import InspectorConfig, load_config
    from cmml_ros.evaluation.network import UNSEEN_SEED, evaluate_network

    config = load_config(InspectorConfig, options.config) if options.config else InspectorConfig()
    seed = UNSEEN_SEED + options.seed
    print(evaluate_network(options.out, config, frames=options.frames, seed=seed, look=options.look))


def _evaluate_measurement(options: argparse.Namespace) -> None:
    from cmml_ros.config import InspectorConfig, load_config
    from cmml_ros.evaluation.measurement import evaluate_measurement

    config = load_config(InspectorConfig, options.config) if options.config else InspectorConfig()
    print(evaluate_measurement(options.out, config, masks=options.masks, full=options.full, seed=options.seed))


def _add_export(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        'export',
        help='the network for other runtimes',
        description='Write the network as ONNX. FILE segments. Inputs: image (1, H, W, 3) uint8 BGR, H and W multiples '
        'of 16, and range_maps (1, 3, H / 2, W / 2) float32, zeros when unknown. Output: probabilities (1, 2, H, W) '
        'of "inside the rim of an airhole" and "on such a rim". Beside it NAME-encoding.onnx and NAME-description.onnx '
        'match pixels to points: docs/network.md tells how.',
    )
    parser.add_argument('out', type=Path, metavar='FILE', help='file to write, NAME.onnx')
    parser.add_argument(
        '--model', default='small', help='name of shipped weights or path of a .safetensors file (default: %(default)s)'
    )
    parser.add_argument('--format', choices=['onnx'], default='onnx', help='(default: %(default)s)')
    parser.set_defaults(run=_export)


def _export(options: argparse.Namespace) -> None:
    from cmml_ros.model.export import export_onnx

    print(*export_onnx(options.model, options.out), sep='\n')


def _add_benchmark(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        'benchmark',
        help='where the time goes on this machine',
        description='Run a recording through the pipeline and print how long every stage of a frame takes.',
    )
    parser.add_argument('bag', type=Path, metavar='BAG', help='rosbag2 folder or file')
    parser.add_argument('--config', type=Path, metavar='FILE', help='settings as YAML, plain or a ROS parameter file')
    parser.add_argument(
        '--repeats', type=_whole(1), default=1, metavar='N', help='how often the recording is gone through (default: 1)'
    )
    parser.add_argument('--json', type=Path, metavar='FILE', help='also write the figures here')
    parser.set_defaults(run=_benchmark)


def _benchmark(options: argparse.Namespace) -> None:
    import json

    from cmml_ros.config import InspectorConfig, load_config
    from cmml_ros.evaluation.speed import measure_speed

    config = load_config(InspectorConfig, options.config) if options.config else InspectorConfig()
    speed = measure_speed(options.bag, config, options.repeats)
    print(speed.table())
    if options.json:
        options.json.write_text(json.dumps(speed.document(), indent=2) + '\n', encoding='utf-8')


if __name__ == '__main__':
    sys.exit(main())
