"""The machine: one guest, everything that belongs to it, and its life from launch to end.

A machine is made in three steps: a process with guest RAM and nothing in it (`Machine.__init__`), contents and
registers (`launch`, or checkpoint/restore.py), and `start`, which lets it run. Exits come in on three threads: mapping
changes, signals and death on the tracer (exits.py), all other calls on the hypercall loop, page faults on the
pager. `lock` makes what they do to the guest's state one thing after the other; page metadata has its own lock.
"""

from __future__ import annotations

import errno
import os
import signal as signals
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from memvm.errors import BadPage, GuestStateError, HostError, ImageError, MemvmError, UsageError
from memvm.linux import ptrace
from memvm.machine.answering import INTERNAL_ERROR, Answering
from memvm.machine.baseline import Baseline
from memvm.machine.clock_page import ClockPage
from memvm.machine.config import ExitStatus, GuestConfig, GuestStatus, RunOptions, RunState
from memvm.machine.delivery import Delivery
from memvm.machine.enforcing import Enforcement
from memvm.machine.exits import Exits
from memvm.machine.guest import PARENT_PID, Guest
from memvm.machine.guest_memory import GuestMemory
from memvm.machine.hypercalls.families import TABLE
from memvm.machine.launched import Launched
from memvm.machine.layout import MAX_RAM, MIN_RAM, RAM_BASE
from memvm.machine.notifications import HypercallLoop
from memvm.machine.paging import Paging, make_engine, make_write_scan
from memvm.machine.placement import Placement
from memvm.machine.sampling import Sampling
from memvm.machine.service import ServiceThread
from memvm.machine.settings import Name, Settings, default_settings
from memvm.machine.signals import make_signal
from memvm.machine.space import LARGE, AddressSpace, OutOfMemory, Region
from memvm.machine.streams import OpenFiles
from memvm.machine.thread import GuestThread
from memvm.machine.tracer import Tracer
from memvm.machine.vcpu import registers_of
from memvm.machine.vcpus import Vcpus
from memvm.memory.dirty import DirtyTracker, DirtyWatch
from memvm.memory.engine import FaultEngine
from memvm.memory.pages import PageRun
from memvm.memory.protection import Prot
from memvm.memory.ram import GuestRam
from memvm.memory.traces import Traces
from memvm.memory.uffd_engine import UserfaultfdEngine
from memvm.memory.write_scan import WriteScan
from memvm.say import say
from memvm.units import PAGE_SIZE, format_size

if TYPE_CHECKING:
    from memvm.machine.files_state import FilesState
    from memvm.machine.preallocating import Preallocating
    from memvm.machine.program import Program

T = TypeVar("T")

_TRACED = frozenset(entry.number for entry in TABLE.values() if entry.traced)
_MPROTECT = 10


class Machine:
    """One guest. Every public method may be called from any thread."""

    def __init__(self, options: RunOptions, ram_size: int, ram: GuestRam | None = None) -> None:
        """A guest process with empty RAM. Raises UsageError for the size, HostError if the machine forbids it.

        `ram` may be made already, of that size, and somebody may be filling it with pages past all metadata. It belongs
        to the machine once that is made, and not if an error is raised.
        """
        if not MIN_RAM <= ram_size <= MAX_RAM:
            least, most = format_size(MIN_RAM), format_size(MAX_RAM)
            raise UsageError(f"guest RAM of {format_size(ram_size)}: it must be {least} to {most}")
        self.options = options
        self.lock = threading.Lock()
        """Orders everything that hypercalls, stops and requests do to the guest's state."""
        self.saving = threading.Lock()
        """Held by the one save that may be under way."""
        self.baseline: Baseline | None = None
        """What the next incremental save can build on; belongs to who holds `saving`."""
        self.restored_from = ""
        self.vouched: bool | None = None
        """Whether a platform vouches for the checkpoint that it came from; None if that has to be looked up."""
        self.restore_report: Callable[[], Any] | None = None
        """Tells how the restore went; None if nobody asked for that to be noted."""
        self.at_start: list[Callable[[], None]] = []
        """What shall begin when the guest begins to run."""
        self.at_close: list[Callable[[], None]] = []
        """What must be ended once the guest has ended, while its RAM is still there."""
        self.at_release: list[Callable[[], None]] = []
        """What must be released once no fault can be answered any more."""
        self._status: ExitStatus | None = None
        self._over = threading.Event()
        self._state = RunState.STARTING
        self._began = time.monotonic()
        self._first_output: tuple[float, int, int] = (-1.0, 0, 0)
        self._loop: HypercallLoop | None = None
        self.preallocating: Preallocating | None = None
        """There from the guest's first large piece of memory on."""
        self._closed = False
        self.enforcement = Enforcement(self)
        self.ram = ram or GuestRam(RAM_BASE, ram_size // PAGE_SIZE * PAGE_SIZE)
        self.files = OpenFiles()
        self.tracer = Tracer()
        self._clock_page: ClockPage | None = None
        try:
            self.space = AddressSpace(self.ram, self._apply_protection)
            self.guest = Guest(self.ram, GuestMemory(self.ram), self.space, self.files, self.end)
            self.guest.tell = self.warn
            self.guest.on_first_output = self._note_first_output
            self.guest.pauses_at, self.guest.pause_now = options.pause_after, self._pause_now
            self.guest.interrupt = lambda thread: self.tracer.kick(thread.vcpu)
            self._answering = Answering(self.guest, options, self.failed)
            delivery = Delivery(self.guest, self._answering.perform)
            self.guest.take_down_frame = delivery.take_down_frame
            self.placement = Placement(options.cpu)
            self.vcpus = Vcpus(self.guest, self.tracer, self.placement)
            self.guest.make_vcpu, self.guest.end_vcpu = self.vcpus.make, self.vcpus.end
            self.engine, scan = self.tracer.call(self._make_process)
            self._exits = Exits(
                self.guest,
                self.lock,
                self.tracer,
                self.engine,
                self.vcpus,
                self._answering,
                delivery,
                poke=self._poke,
                end=self.end,
                ended=self._ended,
                failed=self.failed,
            )
            self._exits.tells_of_crashes = not options.sealed
            self.dirty = DirtyTracker(self.ram, self.engine, scan, self.frozen, self.lock, self.failed)
            self.traces = Traces(self.ram, self.engine, self._exits.instruction, self.failed)
            self.traces.on_idle = self.dirty.settle
            self._sampling = Sampling(self.ram, self.traces, self.failed)
        except BaseException:
            self.tracer.close()
            if self._clock_page is not None:
                self._clock_page.close()
            self.files.release()
            if ram is None:
                self.ram.close()
            raise

    def _make_process(self) -> tuple[FaultEngine, WriteScan | None]:
        stub = self.tracer.stub
        self._clock_page = ClockPage(self.guest.clocks)
        stub.start(self.ram, self._clock_page.fd, isolated=self.options.sealed)
        engine = make_engine(self.options.engine, self.ram, self.tracer, self._protect_pages, self.placement.join)
        scan = make_write_scan(self.ram, self.tracer) if isinstance(engine, UserfaultfdEngine) else None
        try:
            listener = stub.seal(self.ram, f"guest:{self.options.name}", _TRACED)
        except BaseException:
            if scan is not None:
                scan.close()
            engine.stop()
            raise
        clocks = self.guest.clocks
        service = ServiceThread(self.ram, self.tracer, clocks, self.placement.allowed)
        self.vcpus.adopt_first()
        self._loop = HypercallLoop(listener, self.guest, self.lock, self._answering.perform, self.failed, service)
        clocks.follow(stub.pid)
        if isinstance(engine, UserfaultfdEngine):
            engine.drop = service.drop
        return engine, scan

    @classmethod
    def launch(cls, config: GuestConfig, options: RunOptions) -> Machine:
        """A guest with its program loaded, ready to start. Raises ImageError, UsageError, HostError."""
        from memvm.machine.program import read_program  # a restore needs none of it, and begins the sooner

        return cls.launch_program(read_program(config), config, options)

    @classmethod
    def launch_program(cls, program: Program, config: GuestConfig, options: RunOptions) -> Machine:
        """As `launch`, of a program whose files have been opened; they are closed, whatever happens."""
        try:
            machine = cls(options, config.ram_size)
        except BaseException:
            program.close()
            raise
        try:
            machine._load(config, program)
        except BaseException:
            machine.close()
            raise
        return machine

    def _load(self, config: GuestConfig, program: Program) -> None:
        from memvm.machine.loader import draw_random, launch_records, load
        from memvm.machine.measurement import Measuring

        guest = self.guest
        guest.program, guest.argv, guest.image_bias = program.path, program.argv, program.bias
        guest.views, guest.cwd, guest.main.name = config.views, program.cwd, program.thread_name
        guest.hostname, guest.cpus = config.hostname, config.cpus
        if program.hidden:
            own = "/" + program.hidden.split("/")[1]
            self.warn(f"it has a {own} of its own, without {program.hidden}, and begins in /; --ro . gives it that")
        self.adopt_launch(Launched({**default_settings(), **config.settings}))
        loaded = self.tracer.call(lambda: load(program, config, self.ram, self.space))
        region = self.space.writable_and_executable()
        if self.settings.value(Name.WX) == "off" and region is not None:
            raise ImageError(f"{program.path}: it wants memory that is writable and executable, and has wx=off")
        records = launch_records(program, config, loaded, self.space)
        measuring = Measuring(self.ram, self.space, records)
        self.guest.launched.measure = lambda: measuring.finish().digest
        draw_random(loaded, self.ram)
        if program.interpreter is not None:  # the first thing that it does is to look for libraries
            _ = guest.tree
        registers = dict.fromkeys(ptrace.REGISTERS, 0)
        registers.update(rip=loaded.entry, rsp=loaded.stack_pointer, eflags=0x202)
        self.tracer.call(lambda: self.vcpus.set_first(registers))

    def adopt_launch(self, launched: Launched) -> None:
        """This is what the guest was launched as; its settings count from here on."""
        self.enforcement.adopt(launched)

    def restore_guest(self, adopt: Callable[[], None]) -> None:
        """Fill a fresh machine from a checkpoint: `adopt` sets regions and state, threads and their registers."""
        self.guest.threads.clear()
        self.guest.by_vcpu.clear()
        try:
            self.tracer.call(adopt)
        except OutOfMemory:
            raise HostError(
                "the guest's memory is in more pieces than a process may have here",
                hint="raise the limit: sysctl vm.max_map_count",
            ) from None

    def start(self) -> None:
        """Let the guest run."""
        assert self._loop is not None
        assert self._clock_page is not None
        for view in self.guest.views:
            if view.access == "pass":
                self.warn(f"it may change files of this machine, in {view.host}")
        self._clock_page.begin(self.guest.generation + 1)
        self.engine.start(Paging(self.ram, self.engine), self.failed)
        self._loop.start(self.placement.join)
        self._began = time.monotonic()
        self._state = RunState.RUNNING
        if self.placement.elsewhere():
            self.space.changed = self._memory_changed
        self.tracer.begin(self._exits, self._settle)
        self.placement.watch(self.tracer.stub.pid)
        for begin in self.at_start:
            begin()
        if any(map(self.guest.has_signal, self.guest.threads.values())):  # in the checkpoint
            self.tracer.kick()

    def _settle(self) -> None:
        """Bring the guest, and the thread that traces it, to the CPU that they share."""
        self.placement.join()
        self.placement.join(self.tracer.stub.pid)

    def _poke(self) -> None:
        """Have calls tried again that wait for what this thread has done, and timers looked at that it has set."""
        if (self.guest.woken or self.guest.timers.changed) and self._loop is not None:
            self._loop.poke()

    def _ended(self, wait_status: int) -> None:
        """The process has gone: by our doing, by the call that it was let make, or killed from outside."""
        if self._status is None:
            number = os.WTERMSIG(wait_status) if os.WIFSIGNALED(wait_status) else 0
            reason = "the guest's process was killed from outside"
            if number == signals.SIGKILL:
                reason += " (by hand, or because memory ran out)"
            self._status = ExitStatus(128 + number, number or None, reason)
        self._state = RunState.ENDED
        self._over.set()

    def failed(self, error: BaseException) -> None:
        """An exit could not be answered: the guest must not go on."""
        if isinstance(error, BadPage):
            reason = f"{error.message}\n  the guest needed it and was ended"
            self.end(ExitStatus(128 + signals.SIGBUS, signals.SIGBUS, reason))
            return
        if isinstance(error, MemvmError):
            self.end(ExitStatus(error.exit_code, None, error.message))
            return
        import traceback

        trace = "".join(traceback.format_exception(error))
        self.end(ExitStatus(INTERNAL_ERROR, None, f"internal error, the guest was ended:\n{trace}"))

    # What the guest's mappings may have.

    def _apply_protection(self, address: int, size: int, protection: Prot) -> None:
        run = PageRun((address - self.ram.base) // PAGE_SIZE, size // PAGE_SIZE)
        try:
            for part, rights in self.engine.allowed(run, protection):
                self._protect_pages(part, rights)
        except OSError as error:
            if error.errno != errno.ENOMEM:  # vm.max_map_count: too many changes of protection in one guest
                raise
            raise OutOfMemory from error

    def _protect_pages(self, run: PageRun, rights: int) -> None:
        self.vcpus.have_called(_MPROTECT, self.ram.base + run.first * PAGE_SIZE, run.count * PAGE_SIZE, rights)

    def _memory_changed(self, start: int, end: int, region: Region | None) -> None:
        """AddressSpace.changed; the lock is held."""
        if self.preallocating is None:
            if region is None or region.size < LARGE:
                return
            from memvm.machine.preallocating import Preallocating  # most guests have no such memory

            self.preallocating = Preallocating(self.ram, self.placement, self._may_preallocate, self.failed)
        self.preallocating.changed(start, end, region)

    def _may_preallocate(self) -> bool:
        """Whether the guest just runs: it does not stand still, and nobody saves it or is asked about its faults."""
        return self._state is RunState.RUNNING and not self.saving.locked() and not self.engine.in_use_beside(0)

    # Requests from outside.

    def frozen(self, function: Callable[[], T]) -> T:
        """Run a function while the guest stands still and no call is half done; on the tracer's thread."""

        def run() -> T:
            with self.lock:
                return function()

        return self.tracer.call(run)

    def pause(self) -> None:
        """Stop the guest until `resume`. Raises GuestStateError if it has ended."""
        self._must_live()
        self.tracer.hold()
        self._state = RunState.PAUSED

    def _pause_now(self, thread: GuestThread) -> None:
        """It has made as many calls as it shall; the lock is held."""
        self._state = RunState.PAUSED
        self.tracer.hold_soon(thread.vcpu)

    def resume(self, calls: int = 0) -> None:
        """Let a paused guest go on; if `calls` is not 0, until it has made so many more hypercalls.

        Raises GuestStateError if it has ended.
        """
        self._must_live()
        self.enforcement.require_token()
        with self.lock:  # who saw it paused by `_pause_now` comes after it, and releases what that holds
            if calls:
                self.guest.pauses_at = self.guest.calls + calls
            self._state = RunState.RUNNING
        self.tracer.release()

    def _must_live(self) -> None:
        if self._over.is_set():
            raise GuestStateError(f"guest {self.options.name} has ended")

    def kill(self, reason: str = "") -> None:
        """End the guest as SIGKILL does."""
        self.end(ExitStatus(128 + signals.SIGKILL, signals.SIGKILL, reason or "killed"))

    def take_signal(self, number: int) -> bool:
        """Give the guest a signal from outside, unless that would only end it; False if so."""
        with self.lock:
            if not self.guest.cares_for(number):
                return False
            self.guest.send(make_signal(number, sender=PARENT_PID))
        self._poke()
        return True

    def end(self, status: ExitStatus) -> None:
        """End the guest with this status, unless it has one already."""
        if self._status is None:
            why = [reason for reason in (status.reason, self.guest.shortage() if status.code else "") if reason]
            self._status = status._replace(reason="\n  ".join(why))
        self.tracer.kill()

    @property
    def is_ending(self) -> bool:
        """Whether the guest has ended, or is about to."""
        return self._status is not None

    def wait(self, timeout: float | None = None) -> ExitStatus | None:
        """How the guest ended, once it has; None if the time ran out first."""
        return self._status if self._over.wait(timeout) else None

    def warn(self, message: str) -> None:
        """Say something about the guest on standard error; standard output is the guest's."""
        say(f"memvm: guest {self.options.name}: {message}")

    def warn_of_changed_files(self) -> None:
        """Say which files of the host's a restored guest has open that are not what they were."""
        for changed in self.guest.changed_files:
            self.warn(f"{changed}, which it has open, has changed since the checkpoint")

    def regions(self) -> list[tuple[int, int, str]]:
        """What parts of guest RAM are for: start and end address, and the kind; ascending."""
        with self.lock:
            return [(region.start, region.end, region.kind.value) for region in self.space]

    def registers(self) -> dict[str, int]:
        """The general registers at this moment."""
        return self.frozen(lambda: registers_of(self.guest.main.vcpu))

    def read_memory(self, address: int, size: int) -> bytes:
        """A copy of guest memory. Raises UsageError for addresses that are not the guest's, BadPage."""
        self._check_range(address, size)
        return self.ram.read(address, size)

    def write_memory(self, address: int, data: bytes) -> None:
        """Change guest memory, whatever the guest's own rights. Raises UsageError, BadPage."""
        self._check_range(address, len(data))
        with self.lock:
            self.guest.mapped_last = None
            self.ram.write(address, data)

    def files_state(self) -> FilesState:
        """What the guest has of files at this moment. Raises GuestStateError if it has ended, OSError."""
        from memvm.machine.files_state import FilesState

        def capture() -> FilesState:
            self.guest.shared.collect_all()
            return FilesState.capture(self.guest)[0]

        self._must_live()
        return self.frozen(capture)

    def watch_writes(self) -> DirtyWatch:
        """Begin to watch which pages are written. Raises GuestStateError if the guest has ended."""
        return self.dirty.watch()

    @property
    def settings(self) -> Settings:
        """The guest's security settings."""
        return self.guest.launched.settings

    def _check_range(self, address: int, size: int) -> None:
        if size < 0 or not self.space.holds(address, size):
            raise UsageError(f"{size} bytes at {address:#x} are not allocated in guest {self.options.name}")

    def sample_working_set(self, pages: int, interval: float) -> None:
        """Estimate the working set from now on, at a fault for each of so many pages every `interval` seconds.

        With no pages, do so no more. `status` has the estimate. Raises UsageError.
        """
        self._must_live()
        self._sampling.begin(pages, interval)

    def stop_sampling(self) -> None:
        """Estimate the working set no more."""
        self._sampling.stop()

    @property
    def first_instruction(self) -> float | None:
        """When the guest was let run, in seconds of CLOCK_MONOTONIC; None before that."""
        return None if self._state is RunState.STARTING else self._began

    @property
    def first_output(self) -> float | None:
        """When the guest first wrote to a stream, in seconds of CLOCK_MONOTONIC; None if it has not yet."""
        return self._began + self._first_output[0] if self.guest.wrote else None

    def _note_first_output(self) -> None:
        self._first_output = (time.monotonic() - self._began, self._deferred_bytes(), self.engine.faults)

    def _deferred_bytes(self) -> int:
        loader = self.ram.loader
        return loader.remaining * PAGE_SIZE if loader is not None else 0

    def status(self) -> GuestStatus:
        """The guest's figures at this moment."""
        first_output, first_deferred, first_faults = self._first_output
        working_set = self._sampling.estimate
        return GuestStatus(
            name=self.options.name,
            program=self.guest.program,
            state=self._state,
            manager_pid=os.getpid(),
            guest_pid=self.tracer.stub.pid,
            engine=self.engine.name,
            ram_size=self.ram.size,
            ram_touched=self.ram.touched_bytes(),
            ram_deferred=self._deferred_bytes(),
            cpu_time=self.guest.clocks.cpu_time() / 1e9,
            uptime=time.monotonic() - self._began,
            hypercalls=self.guest.calls,
            unknown_calls=dict(self.guest.unknown),
            faults=self.engine.faults,
            fault_p50=self.engine.latencies.quantile(0.5),
            fault_p99=self.engine.latencies.quantile(0.99),
            working_set_size=None if working_set is None else round(working_set.size),
            working_set_error_size=None if working_set is None else round(working_set.error),
            restored_from=self.restored_from,
            clone=self.guest.clone,
            clones=self.guest.clones,
            first_output=first_output if self.guest.wrote else None,
            first_output_deferred=first_deferred,
            first_output_faults=first_faults,
            dirty_rate=self.dirty.rate,
        )

    def close(self) -> None:
        """End the guest if it lives, and release everything; idempotent."""
        if self._closed:
            return
        self._closed = True
        self.end(ExitStatus(128 + signals.SIGKILL, signals.SIGKILL, "closed"))
        self.tracer.close()
        if self._loop is not None:
            self._loop.stop()
        for finish in self.at_close:
            finish()
        if self.preallocating is not None:
            self.preallocating.stop()
        self._sampling.stop()
        self.traces.stop()
        self.placement.stop()
        if self._clock_page is not None:
            self._clock_page.close()
        with self.saving:  # a save that is giving up still uses engine and RAM
            self.dirty.close()
            self.engine.stop()
            self._exits.close()
            for release in self.at_release:
                release()
            self.guest.close()
            if self.enforcement.wipe:
                self.ram.wipe()
            self.ram.close()
