"""A network in one machine: a namespace for each host and one for the switch, so that cables have a rate and a round
trip, and can be pulled.

    coordinator (eth0) -- line -- switch (a bridge) -- veth -- host h1
                                                    -- veth -- host h2

The system's own TCP runs at every end. Rates are `tc tbf` at both ends of the coordinator's line, which all hosts share
as they share the coordinator's link. Round trips are made by a process that hands Ethernet frames from one TAP device
to the other, half a round trip late: many kernels are built without `tc netem`. Without a line to shape the
coordinator has a veth pair like a host. A cable is pulled by `ip link set down` at the switch: what is sent into it is
lost without a word to either side.

The benchmark runs itself again in a namespace of its own (`unshare`), so nothing of the machine's network is touched,
and all is gone when it ends. It takes root, or user namespaces, and for shaped lines /dev/net/tun.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import multiprocessing
import os
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "hosts"))

from host_processes import Hosts

INSIDE = "HEADRACE_BENCH_NETWORK"  # set where the namespace is the benchmark's own
COORDINATOR, NEAR, FAR = "10.77.0.1", "eth0", "port0"
TUNSETIFF, TAP = 0x400454CA, 0x0002 | 0x1000  # a device of Ethernet frames, without a header before each
FRAME, MTU = 1 << 16, 9000  # bytes of a read, and of a frame, as large as real networks have
BURST = MTU + 1024  # bytes that leave at once: one frame. Through 256 KB whole passes went as if there were no rate
TIMER_SLACK = 29  # PR_SET_TIMERSLACK


def enter() -> None:
    """Runs this program again in a network of its own, once. Ends it with a word where that is not allowed."""
    if os.environ.get(INSIDE):
        return
    unshare = ["unshare", "--net"] if os.geteuid() == 0 else ["unshare", "--user", "--map-root-user", "--net"]
    if subprocess.run([*unshare, "true"], capture_output=True, check=False).returncode:
        sys.exit(
            "a network of its own takes root, or user namespaces: allow one of them (sysctl user.max_*_namespaces)"
        )
    os.environ[INSIDE] = "1"
    os.environ.setdefault("HEADRACE_HOST_TOKEN", "a secret of this benchmark")  # nobody joins without one
    os.execvp(unshare[0], [*unshare, sys.executable, *sys.argv])


def run(*words: str) -> None:
    """A command of the system. Raises CalledProcessError."""
    subprocess.run(words, check=True, capture_output=True)


class Namespace:
    """A network that lives as long as a process that does nothing, and this process."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(["unshare", "--net", "cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
        here = os.readlink("/proc/self/ns/net")
        while os.readlink(self.path) == here:
            time.sleep(0.01)
        self.run("ip", "link", "set", "lo", "up")

    @property
    def path(self) -> str:
        return f"/proc/{self.process.pid}/ns/net"

    def command(self, *words: str) -> list[str]:
        """A command that runs in it."""
        return ["nsenter", f"--net={self.path}", *words]

    def run(self, *words: str) -> None:
        run(*self.command(*words))

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        if self.process.stdin is not None:
            self.process.stdin.close()


class Line:
    """The coordinator's line: frames from one TAP device to another, late."""

    def __init__(self) -> None:
        self.delay = multiprocessing.Value("d", 0.0)
        self.ends = [self._tap(name) for name in (NEAR, FAR)]
        self.process = multiprocessing.get_context("fork").Process(target=self._run, daemon=True)

    def _tap(self, name: str) -> int:
        try:
            end = os.open("/dev/net/tun", os.O_RDWR)
        except OSError as error:
            sys.exit(f"/dev/net/tun cannot be opened ({error.strerror}): shaped lines need it")
        fcntl.ioctl(end, TUNSETIFF, struct.pack("16sH22x", name.encode(), TAP))
        return end

    def _run(self) -> None:
        ctypes.CDLL(None).prctl(TIMER_SLACK, 1)  # sleeps that end when they are to
        near, far = self.ends
        for one, other in ((near, far), (far, near)):
            late: SimpleQueue[tuple[float, bytes]] = SimpleQueue()
            threading.Thread(target=self._take, args=(one, late), daemon=True).start()
            threading.Thread(target=self._hand_on, args=(late, other), daemon=True).start()
        threading.Event().wait()

    def _take(self, one: int, late: SimpleQueue[tuple[float, bytes]]) -> None:
        while True:
            try:
                data = os.read(one, FRAME)
            except OSError:  # the device is down still
                time.sleep(0.01)
                continue
            late.put((time.perf_counter() + self.delay.value, data))

    def _hand_on(self, late: SimpleQueue[tuple[float, bytes]], other: int) -> None:
        ctypes.CDLL(None).prctl(TIMER_SLACK, 1)
        while True:
            due, data = late.get()
            left = due - time.perf_counter()
            if left > 0:
                time.sleep(left)
            with contextlib.suppress(OSError):  # down
                os.write(other, data)

    def close(self) -> None:
        self.process.kill()
        self.process.join()
        for end in self.ends:
            os.close(end)


class Network:
    """So many hosts behind a switch; is_shaped: with a line that can be."""

    def __init__(self, hosts: int, is_shaped: bool = False) -> None:
        run("ip", "link", "set", "lo", "up")
        self.switch = Namespace()
        self.switch.run("ip", "link", "add", "bridge", "mtu", str(MTU), "type", "bridge")
        self.switch.run("ip", "link", "set", "bridge", "up")
        self.line = Line() if is_shaped else None
        if self.line is not None:
            run("ip", "link", "set", FAR, "netns", str(self.switch.process.pid))
            run("ip", "link", "set", NEAR, "mtu", str(MTU))
            self._plug(FAR)
            self.line.process.start()
        else:
            run("ip", "link", "add", NEAR, "mtu", str(MTU), "type", "veth", "peer", "name", FAR, "netns",
                str(self.switch.process.pid))  # fmt: skip
            self._plug(FAR)
        run("ip", "addr", "add", f"{COORDINATOR}/24", "dev", NEAR)
        run("ip", "link", "set", NEAR, "up")
        self.hosts = [self._host(number) for number in range(1, hosts + 1)]

    def _plug(self, port: str) -> None:
        """A device of the switch's namespace becomes one of its ports."""
        self.switch.run("ip", "link", "set", port, "mtu", str(MTU), "master", "bridge", "up")

    def _host(self, number: int) -> Namespace:
        found = Namespace()
        pid = str(found.process.pid)
        self.switch.run("ip", "link", "add", f"port{number}", "type", "veth", "peer", "name", NEAR, "netns", pid)
        self._plug(f"port{number}")
        found.run("ip", "addr", "add", f"10.77.0.{number + 1}/24", "dev", NEAR)
        found.run("ip", "link", "set", NEAR, "mtu", str(MTU), "up")
        return found

    def shape(self, round_trip: float, rate: float | None) -> None:
        """Seconds of the line there and back, and bits a second in each direction; None: as fast as it goes."""
        assert self.line is not None, "a network without a line"
        self.line.delay.value = round_trip / 2
        for where, device in ((run, NEAR), (self.switch.run, FAR)):
            _limit(where, device, rate)

    def cable(self, number: int, is_in: bool) -> None:
        """Pulls the cable of a host at the switch, or puts it in again."""
        self.switch.run("ip", "link", "set", f"port{number}", "up" if is_in else "down")

    def choke(self, number: int, rate: float | None) -> None:
        """Lets a host's cable carry so many bits a second in each direction; None: as many as it can."""
        for where, device in ((self.switch.run, f"port{number}"), (self.hosts[number - 1].run, NEAR)):
            _limit(where, device, rate)

    def close(self) -> None:
        for one in [*self.hosts, self.switch, *([self.line] if self.line else [])]:
            one.close()


def _limit(where: Callable[..., None], device: str, rate: float | None) -> None:
    """Bits a second of what leaves a device."""
    with contextlib.suppress(subprocess.CalledProcessError):  # there is none
        where("tc", "qdisc", "del", "dev", device, "root")
    if rate is not None:
        words = ("rate", f"{rate:.0f}bit", "burst", str(BURST), "latency", "5s")
        where("tc", "qdisc", "add", "dev", device, "root", "tbf", *words)


class FarHosts(Hosts):
    """Hosts of a model, each in its namespace of a network."""

    def __init__(self, model: Path | str, network: Network, *options: str) -> None:
        self.network = network
        super().__init__(model, len(network.hosts), *options, address=COORDINATOR)

    def command(self, name: str, words: list[str]) -> list[str]:
        return self.network.hosts[int(name[1:]) - 1].command(*words)

    def cable(self, name: str, is_in: bool) -> None:
        """Of a host by its name."""
        self.network.cable(int(name[1:]), is_in)

    def choke(self, name: str, rate: float | None) -> None:
        """The same."""
        self.network.choke(int(name[1:]), rate)
