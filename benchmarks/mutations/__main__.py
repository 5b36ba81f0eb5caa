"""Would the fast tests notice an error? Changes one place of the package at a time, and runs them.

    python -m benchmarks.mutations --commit HEAD --out mutations.csv
    python -m benchmarks.mutations --commit HEAD --list

The changes are those of `list.txt`. The tests run in a worktree of the commit, so the working
directory is not touched. For each change, the nearest tests run until one fails: the files of the
module's name, those that the list names, and the rows of its keys in the contract suite. First they
run in one process, which gives the functions of a module other code. What survives there is decided
by processes that read the changed file.

With `--whole`, one more run of the fast tier finds the test files that evaluate the changed
expression of each survivor, and these files decide. The caches of JAX and of the package are
cleared before every file of that run, so that no file uses a value which another one computed.
Without `--whole`, the table says of a survivor that only the nearest tests have run.

Rows that the table of `--out` has are not computed again, so a stopped run goes on.
"""

import argparse
import ast
import collections
import contextlib
import csv
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time

from benchmarks.mutations.locate import AREAS, Mutation, Place, changed, find, mutations, replaced

HERE, PLUGIN = pathlib.Path(__file__).parent, 'in_one_process'


class Checkout:
    """A worktree of a commit, in which one file at a time is changed."""

    def __init__(self, root: pathlib.Path, options):
        self.root, self.options, self.writes = root, options, 0

    @contextlib.contextmanager
    def holding(self, sources: dict[pathlib.Path, str]):
        """Files with other sources. Every write has a time of its own, since Python recognises a
        compiled file by the time of its source.
        """
        before = {path: path.read_text(encoding='utf-8') for path in sources}
        try:
            self._write(sources)
            yield
        finally:
            self._write(before)

    def _write(self, sources):
        for path, text in sources.items():
            self.writes += 1
            path.write_text(text, encoding='utf-8')
            os.utime(path, (10**9 + self.writes,) * 2)

    def test(self, *arguments, jobs=None, processes=0, times=1):
        """One run of pytest: the result, and the tests that failed."""
        own = '-q --tb=no -rfE -p no:cacheprovider'.split()
        count = f'-n{processes}'
        more = {'PYTHONPATH': str(HERE), **jobs} if jobs is not None else {}
        named = ['-p', PLUGIN] if jobs is not None else []
        command = [sys.executable, '-m', 'pytest', *own, count, *named, *map(str, arguments)]
        env = {**os.environ, **more}
        try:
            done = subprocess.run(
                command,
                cwd=self.root,
                env=env,
                capture_output=True,
                text=True,
                timeout=self.options.limit * times,
            )
        except subprocess.TimeoutExpired:
            return 'timeout', []
        failed = re.findall(r'^(?:FAILED|ERROR) (.+?)(?: - .*)?$', done.stdout, re.MULTILINE)
        if done.returncode in (0, 5):  # 5: no test was selected
            return 'survived', []
        if done.returncode == 4 or not failed:
            raise RuntimeError(f'{" ".join(command)}\n{done.stdout[-2000:]}{done.stderr[-2000:]}')
        return 'caught', failed


def keys_of(source: str) -> list[str]:
    """The keys that a file registers."""
    return re.findall(r"^@register\(\s*'(\w+)'", source, re.MULTILINE)


def nearest(mutation: Mutation, place: Place, root: pathlib.Path) -> list[tuple]:
    """Arguments of the runs of pytest that are likely to notice a change, the likeliest first."""
    keys = keys_of(place.path.read_text(encoding='utf-8'))
    files = {path.stem: path for path in sorted((root / 'tests').rglob('*_test.py'))}
    own = [files[f'{name}_test'] for name in (place.path.stem, *keys) if f'{name}_test' in files]
    runs = [tuple(dict.fromkeys(own))] if own else []
    for hint in mutation.hints:
        stem, _, rows = hint.partition(':')
        if stem in files and files[stem] not in own:
            runs.append((files[stem], *(('-k', rows) if rows else ())))
    suite = files.get(
        'mixer_contract_test' if mutation.file.startswith('mixers') else 'contract_test'
    )
    if keys and suite and mutation.area != 'lab':
        runs.append((suite, '-k', ' or '.join(keys)))
    return runs


def in_one_process(checkout: Checkout, chosen: dict[Mutation, Place], save):
    """Saves the rows of the changes that the nearest tests notice when they run in one process."""
    jobs, files = [], set()
    for m, place in chosen.items():
        runs = [
            ([str(a) for a in run if isinstance(a, pathlib.Path)], run[-1].split(' or '))
            if '-k' in run
            else (list(map(str, run)), [])
            for run in nearest(m, place, checkout.root)
        ]
        files |= {file for own, _ in runs for file in own}
        before = place.path.read_text(encoding='utf-8')
        module = '.'.join(place.path.relative_to(checkout.root).with_suffix('').parts)
        job = dict(name=m.name, module=module, before=before, after=changed(m, place), runs=runs)
        jobs.append(job)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / 'jobs'
        path.write_text(json.dumps(jobs))
        try:
            checkout.test(*sorted(files), jobs={'MUTATION_JOBS': str(path)}, times=9)
        finally:
            found = path.with_suffix('.found')
            names = {m.name: m for m in chosen}
            for line in found.read_text().splitlines() if found.exists() else []:
                name, test, seconds = json.loads(line)
                if test is not None:
                    how = 'nearest, in one process', seconds, test
                    save((*row_of(checkout, names[name], chosen[names[name]]), 'caught', *how))


def reaching(checkout: Checkout, chosen: dict[Mutation, Place]) -> dict[Mutation, set[str]]:
    """The test files of the fast tier that evaluate each place."""
    with tempfile.TemporaryDirectory() as folder:
        sources: dict[pathlib.Path, str] = {}
        logs = {m: pathlib.Path(folder) / str(number) for number, m in enumerate(chosen)}
        test = "__import__('os').environ.get('PYTEST_CURRENT_TEST', '')"
        for m, place in sorted(chosen.items(), key=lambda item: item[1].span, reverse=True):
            source = sources.get(place.path) or place.path.read_text(encoding='utf-8')
            seen = f'open({str(logs[m])!r}, "a").write({test} + "\\n")'
            marked = f'({seen} and ({ast.unparse(place.node)}))'
            sources[place.path] = replaced(place, marked, source)
        with checkout.holding(sources):
            how = dict(jobs={}, processes=checkout.options.whole, times=9)
            if checkout.test('--dist', 'loadfile', **how)[0] == 'timeout':
                raise TimeoutError('the fast tier took nine times the limit of one run')
        read = lambda log: set(log.read_text().splitlines()) if log.exists() else set()
        lines = {m: read(log) for m, log in logs.items()}
        return {m: {line.split('::')[0] for line in found} for m, found in lines.items()}


def row_of(checkout: Checkout, mutation: Mutation, place: Place) -> tuple:
    where = f'{place.path.relative_to(checkout.root)}:{place.node.lineno}'
    return mutation.area, mutation.kind, mutation.name, where


def decide(checkout: Checkout, mutation: Mutation, place: Place, runs, ran: str, processes=0):
    """The row of a mutation: whether one of the runs notices it."""
    begun, result, tests = time.monotonic(), 'survived', []
    with checkout.holding({place.path: changed(mutation, place)}):
        for run in runs:
            result, tests = checkout.test('-x', *run, processes=processes)
            if result != 'survived':
                break
    seconds = round(time.monotonic() - begun)
    return *row_of(checkout, mutation, place), result, ran, seconds, *tests


def measure(checkout: Checkout, chosen: dict[Mutation, Place], table: pathlib.Path):
    """Decides what the table does not have, and writes it after every mutation."""
    rows = {}
    if table.exists():
        with table.open(newline='') as file:
            rows = {row[2]: tuple(row) for row in csv.reader(file)}

    def save(row):
        rows[row[2]] = row
        print(*row, sep='  ', flush=True)
        with table.open('w', newline='') as file:
            csv.writer(file).writerows(rows.values())

    if new := {m: place for m, place in chosen.items() if m.name not in rows}:
        in_one_process(checkout, new, save)
    for m, place in new.items():
        if m.name not in rows:
            save(decide(checkout, m, place, nearest(m, place, checkout.root), 'nearest'))
    left = lambda row: row[4] == 'survived' and row[5].startswith('nearest')
    alive = {m: place for m, place in chosen.items() if left(rows[m.name])}
    if checkout.options.whole and alive:
        for m, files in reaching(checkout, alive).items():
            runs = [('tests',) if '' in files else tuple(sorted(files))] if files else []
            ran = f'the {len(files)} files that reach it'
            save(decide(checkout, m, alive[m], runs, ran, checkout.options.whole))
    noticed = {test for row in rows.values() if row[4] == 'caught' for test in row[7:]}
    wrong = checkout.test(*sorted(noticed))[1] if noticed else []
    for area in AREAS:
        results = collections.Counter(row[4] for row in rows.values() if row[0] == area)
        print(area, *(f'{count} {result}' for result, count in results.items()), sep='  ')
    for row in rows.values():
        if row[4] != 'caught':
            print(row[4], 'by', row[5], ' '.join(row[1:4]))
    for test in wrong:
        print(f'{test} fails without any change too: what it caught is not shown')


def main():
    about = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=about)
    parser.add_argument('--commit', default='HEAD')
    parser.add_argument('--out', type=pathlib.Path, default=pathlib.Path('mutations.csv'))
    parser.add_argument('--list', action='store_true', help='only show where the mutations are')
    parser.add_argument('--only', default='', help='a regular expression of names')
    parser.add_argument('--whole', type=int, default=0, metavar='PROCESSES')
    parser.add_argument('--limit', type=int, default=1200, help='seconds of one run of pytest')
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit('stopped'))  # removes the worktree
    with tempfile.TemporaryDirectory() as folder:
        root, git = pathlib.Path(folder) / 'checkout', ['git', 'worktree']
        subprocess.run([*git, 'add', '--quiet', '--detach', root, options.commit], check=True)
        try:
            found = {m: find(m, root) for m in mutations() if re.search(options.only, m.name)}
            chosen = {m: place for m, place in found.items() if isinstance(place, Place)}
            for m, place in found.items():
                if m not in chosen:
                    print(f'{m.name}: {place}')
                elif options.list:
                    changed(m, place)
                    print(m.name, place.path.relative_to(root), place.node.lineno, sep='  ')
            print(f'{len(chosen)} of {len(found)} mutations found')
            if not options.list:
                measure(Checkout(root, options), chosen, options.out)
        finally:
            subprocess.run([*git, 'remove', '--force', root], check=True)


if __name__ == '__main__':
    main()
