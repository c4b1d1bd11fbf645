"""Writers of one folder, over and over: two at once, and one that is killed at any moment.

    python tests/security/writers/soak.py pairs --times 50 [--store s3|disk] [--only ingest+embed]
    python tests/security/writers/soak.py kills --times 40 [--store s3|disk] [--only embed]

Two at once: both begin within 50 ms. One ends with exit code 2 and one line that names the other,
and the lease stays the other's. Every tenth time that one does all of its work, and what it leaves
is what it leaves alone, file by file; the other times it is killed, for its work takes long.
Killed: kill -9 of the command, half of the times at a random moment, half of the times right
before a random one of its changes of files. The same command is given again, goes on, and leaves
what it leaves undisturbed. S3 is the server that AWS_ENDPOINT_URL names, the bucket --bucket.
All commands join one cluster of this machine, so that Ray starts once.
Exit code 1 where anything of this does not hold; the folders of failures are kept.
"""

import argparse
import collections
import contextlib
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from commands import Command, ask, import_all
from scenes import VERBS, Scenes

_WITHIN = 0.05
_WHOLE_EVERY = 10


def main() -> int:
    """Runs all pairs, or all verbs; prints a line for each."""
    arguments = _arguments()
    import_all()
    folder = Path(tempfile.mkdtemp(prefix="terrafm-writers-"))
    keep = True
    try:
        with _cluster(folder, arguments) as environment:
            scenes = Scenes(folder, arguments.store, arguments.bucket, environment)
            ask(scenes.prepare, environment=environment)
            soak = _Soak(scenes, arguments)
            keep = not (soak.pairs() if arguments.what == "pairs" else soak.kills())
    finally:
        if keep:
            _say(f"kept: {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    return int(keep)


def _arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["pairs", "kills"])
    parser.add_argument("--times", type=int, default=50)
    parser.add_argument("--store", choices=["disk", "s3"], default="disk")
    parser.add_argument("--bucket", default="writers")
    parser.add_argument("--only", help="one pair (VERB+VERB) or one verb; several with commas")
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


@contextlib.contextmanager
def _cluster(folder, arguments):
    """Environment of commands that join a cluster of this machine, which ends with the block.

    What ingest and embed do here they do by themselves: without the others there is none.
    """
    if arguments.only and not any(verb in arguments.only for verb in ("pretrain", "sweep")):
        yield {"OMP_NUM_THREADS": "1"}
        return
    # Short, for sockets.
    own = os.environ | {"TERRAFM_CLUSTER_DIR": str(folder / "cluster")}
    command = [sys.executable, "-m", "terrafm", "cluster"]
    up = [*command, "up", "--local", "--workers", "1", "--cpus", "6"]
    # A worker is started when there is work for it: most commands here are ended before.
    starting = own | {"RAY_enable_worker_prestart": "0"}
    subprocess.run(up, env=starting, check=True, stdout=subprocess.DEVNULL)
    try:
        from terrafm.clusters.state import FOLDER_VARIABLE, read

        os.environ[FOLDER_VARIABLE] = own[FOLDER_VARIABLE]
        found = read()
        yield {
            "RAY_ADDRESS": found.address,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": found.token_path,
            "OMP_NUM_THREADS": "1",
        }
    finally:
        subprocess.run([*command, "down"], env=own, check=False, stdout=subprocess.DEVNULL)


def _say(text):
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


class _Soak:
    def __init__(self, scenes, arguments):
        self._scenes, self._times = scenes, arguments.times
        self._only = arguments.only.split(",") if arguments.only else None
        self._rng = random.Random(arguments.seed)
        self._alone = {}
        self._number = 0

    # -- two at once ----------------------------------------------------------------------------

    def pairs(self):
        """Whether every pair held every time."""
        names = [f"{a}+{b}" for i, a in enumerate(VERBS) for b in VERBS[i:]]
        held = [self._pair(*name.split("+")) for name in self._chosen(names)]
        return all(held)

    def _chosen(self, names):
        unknown = set(self._only or ()) - set(names)
        if unknown:
            raise SystemExit(f"no such: {sorted(unknown)}; there are {names}")
        return [name for name in names if not self._only or name in self._only]

    def _pair(self, first, second):
        start = "dataset" if "append" in (first, second) else None
        began, wins, failures = time.monotonic(), collections.Counter(), []
        for number in range(self._times):
            winner, fault = self._race(first, second, start, whole=number % _WHOLE_EVERY == 0)
            wins[winner] += 1
            failures += [fault] if fault else []
        told = ", ".join(f"{name} {count}" for name, count in sorted(wins.items()))
        _say(
            f"{first}+{second}, {self._scenes.store}: {self._times} times, {len(failures)} "
            f"failures; won: {told}; {time.monotonic() - began:.0f} s"
        )
        for fault in failures[:3]:
            _say(f"  {fault}")
        return not failures

    def _race(self, first, second, start, whole):
        """Who won, and what did not hold."""
        self._number += 1
        scenes, gate = self._scenes, os.pipe()
        place, commands = scenes.place(self._number, start), []
        for which, verb in enumerate((first, second)):
            words, log = scenes.words(verb, which, place), scenes.log(self._number, which)
            delay = self._rng.uniform(0, _WITHIN)
            commands.append(Command(words, log, scenes.environment, gate, delay))
        os.close(gate[0])
        time.sleep(0.1)
        os.close(gate[1])
        while all(command.poll() is None for command in commands):
            time.sleep(0.01)
        left = [w for w in (0, 1) if commands[w].poll() is None]
        alone = [self._result(verb, w, start)["code"] for w, verb in enumerate((first, second))]
        # Who would be refused there alone has the lease while it finds out, and wins nothing.
        if whole or len(left) != 1 or alone[left[0]]:
            winner, fault = self._judge_whole(place, (first, second), start, commands)
        else:
            winner = left[0]
            fault = self._judge_early(place, commands, winner, refused=alone[1 - winner] != 0)
            commands[winner].kill()
        if fault is None:
            scenes.clear(place)
            return "none" if winner is None else f"{(first, second)[winner]} ({winner + 1})", None
        return "?", f"number {self._number}: {fault}"

    def _judge_early(self, place, commands, winner, refused):
        """While the winner is still at work; the other may be one that is `refused` there alone."""
        if refused:
            return _refusal(commands[1 - winner], must="terrafm: error: ")
        holder = ask(self._scenes.holder, place, environment=self._scenes.environment)
        if commands[winner].poll() is None and holder != commands[winner].pid:
            return f"the lease names {holder}, at work is {commands[winner].pid}"
        return _refusal(commands[1 - winner], must=f"process {commands[winner].pid}, since")

    def _judge_whole(self, place, verbs, start, commands):
        """After both have ended: who won, and what did not hold."""
        codes = [command.wait() for command in commands]
        alone = [self._result(verb, which, start) for which, verb in enumerate(verbs)]
        winners = [w for w in (0, 1) if codes[w] == 0]
        # A command that would be refused there alone may have had the lease while it found out.
        if len(winners) > 1 or (not winners and all(a["code"] == 0 for a in alone)):
            return None, f"exit codes {codes}: {[c.printed()[-500:] for c in commands]}"
        for loser in {0, 1} - set(winners):
            # Where the winner was done before, it is told what lies there.
            if (fault := _refusal(commands[loser], must="terrafm: error: ")) is not None:
                return None, fault
        winner = winners[0] if winners else None
        found = ask(self._scenes.tree, place, environment=self._scenes.environment)
        return winner, _difference(found, self._start(start) if winner is None else alone[winner])

    # -- killed ---------------------------------------------------------------------------------

    def kills(self):
        """Whether every verb went on every time."""
        held = [self._killed(verb) for verb in self._chosen(list(VERBS))]
        return all(held)

    def _killed(self, verb):
        start = "dataset" if verb == "append" else None
        alone = self._result(verb, 0, start)
        began, failures, ended = time.monotonic(), [], 0
        for time_number in range(self._times):
            died, fault = self._kill(verb, start, alone, by_change=time_number % 2 == 1)
            ended += not died
            failures += [fault] if fault else []
        _say(
            f"{verb}, {self._scenes.store}: killed {self._times - ended} of {self._times} times, "
            f"{len(failures)} failures; alone {alone['seconds']:.1f} s and {alone['changes']} "
            f"changes; {time.monotonic() - began:.0f} s"
        )
        for fault in failures[:3]:
            _say(f"  {fault}")
        return not failures

    def _kill(self, verb, start, alone, by_change):
        """Whether it was killed before its end, and what did not hold."""
        self._number += 1
        scenes = self._scenes
        place, log = scenes.place(self._number, start), scenes.log(self._number, 0)
        words = scenes.words(verb, 0, place)
        if by_change:
            at = self._rng.randrange(alone["changes"])
            command = Command(words, log, scenes.environment, dies=at, under=place)
            code, moment = command.wait(), f"change {at}"
        else:
            after = self._rng.uniform(0.05, alone["seconds"])
            command, moment = Command(words, log, scenes.environment), f"{after:.2f} s"
            deadline = time.monotonic() + after
            while command.poll() is None and time.monotonic() < deadline:
                time.sleep(0.005)
            command.kill()
            code = command.poll()
        if code not in (0, 137):
            return False, f"number {self._number}, {moment}: it ended with {code}: " + (
                command.printed()[-1500:]
            )
        again = Command(words, scenes.log(self._number, 1), scenes.environment)
        code_again = again.wait()
        if code_again:
            return True, f"number {self._number}, {moment}: given again it ended with " + (
                f"{code_again}: {again.printed()[-1500:]}"
            )
        found = ask(scenes.tree, place, environment=scenes.environment)
        fault = _difference(found, alone)
        if fault is None:
            scenes.clear(place)
            return code == 137, None
        return code == 137, f"number {self._number}, {moment}: {fault}"

    # -- undisturbed ----------------------------------------------------------------------------

    def _start(self, start):
        """The tree of a folder in which nothing was done."""
        if ("nothing", start) not in self._alone:
            self._number += 1
            place = self._scenes.place(self._number, start)
            tree = ask(self._scenes.tree, place, environment=self._scenes.environment)
            self._scenes.clear(place)
            self._alone["nothing", start] = {"names": set(tree), "constant": tree}
        return self._alone["nothing", start]

    def _result(self, verb, which, start):
        """What a command does alone: code, seconds, changes, its tree, what of it is constant."""
        key = verb, which, start
        if key in self._alone:
            return self._alone[key]
        scenes, trees = self._scenes, []
        for _ in range(2):
            self._number += 1
            place = scenes.place(self._number, start)
            command = Command(
                scenes.words(verb, which, place), scenes.log(self._number, 0), scenes.environment,
                dies=10**9, under=place,
            )  # fmt: skip
            code = command.wait()
            seconds = time.monotonic() - command.began
            if code not in (0, 2):
                raise SystemExit(f"{verb} alone ended with {code}: {command.printed()[-2000:]}")
            trees.append(ask(scenes.tree, place, environment=scenes.environment))
            scenes.clear(place)
            # Or what tells the time would seem to be constant.
            time.sleep(1.1)
        changes = scenes.changes(command)
        names = {n for n in trees[0] if trees[0][n] == trees[1].get(n)}
        self._alone[key] = {
            "code": code, "seconds": seconds, "changes": changes, "names": set(trees[0]),
            "constant": {name: trees[0][name] for name in names},
        }  # fmt: skip
        return self._alone[key]


def _refusal(command, must):
    """What is wrong with how the one that came second has ended."""
    lines = command.printed().strip().splitlines()
    if command.poll() != 2 or len(lines) != 1 or must not in lines[0]:
        return f"the other ended with {command.poll()}: {command.printed()[-1500:]}"
    return None


def _difference(found, alone):
    """What is not as the command leaves it alone; None where all is."""
    less, more = alone["names"] - set(found), set(found) - alone["names"]
    other = [n for n, content in alone["constant"].items() if n in found and found[n] != content]
    if less or more or other:
        return f"missing {sorted(less)[:4]}, more {sorted(more)[:4]}, other {sorted(other)[:4]}"
    return None


if __name__ == "__main__":
    sys.exit(main())
