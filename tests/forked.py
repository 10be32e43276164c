"""Programs in a Python of their own that start at once.

They are forked from a process that has imported PyTorch, its compiler and metalit, which takes two
seconds and more; nothing else has run there. Linux only: elsewhere they start as programs do.

Started as a program, this file is the process that forks.
"""
import functools
import json
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
from importlib import import_module
from types import ModuleType

# What the library or an optimizer's first call imports, sooner or later.
COMMON = ("torch._dynamo", "torch.profiler", "metalit")
WORD = 20  # bytes of a number on the line: of a process, then how it has ended


def word(number: int) -> bytes: return f"{number:<{WORD}}".encode()


@functools.cache
def nursery() -> tuple[socket.socket, subprocess.Popen]:
    "The process that forks, and the line to it: for each process that tests, as long as it lives."
    ours, theirs = socket.socketpair()
    with theirs: process = subprocess.Popen([sys.executable, __file__, str(theirs.fileno())],
                                            pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL,
                                            env=os.environ | {"OMP_NUM_THREADS": "1"})
    return ours, process


class Forked(subprocess.Popen):
    "A process that is no child of this one: who forked it says how it has ended."
    def _execute_child(self, args, executable, preexec_fn, close_fds, pass_fds, cwd, env, *rest):
        assert not (executable or preexec_fn or pass_fds), "a forked program knows no such option"
        pipes = rest[3:9]  # a pipe for each of three files: first its end that is read
        files = [file if file != -1 else usual
                 for usual, file in enumerate((pipes[0], pipes[3], pipes[5]))]
        self.line, theirs = socket.socketpair()
        order = {"words": args[1:], "folder": str(cwd or os.getcwd()),
                 "environment": dict(os.environ if env is None else env)}
        with theirs: socket.send_fds(nursery()[0], [b"!"], [theirs.fileno(), *files])
        self.line.sendall(json.dumps(order).encode() + b"\n")
        self.pid = int(self.line.recv(WORD))
        self._close_pipe_fds(*pipes)

    def waitpid(self, pid, options):
        "As `os.waitpid`."
        self.line.settimeout(0.001 if options & os.WNOHANG else None)
        try: status = int(self.line.recv(WORD))
        except TimeoutError: return 0, 0
        self.line.close()
        return pid, status

    def _internal_poll(self, _deadstate=None, **usual):
        return super()._internal_poll(_deadstate, _waitpid=self.waitpid)

    def _try_wait(self, wait_flags): return self.waitpid(self.pid, wait_flags)


def python(*words, **options) -> subprocess.Popen:
    "Starts `python WORDS…`; the options are those of `subprocess.Popen`."
    kind = Forked if sys.platform == "linux" else subprocess.Popen
    return kind([sys.executable, *map(str, words)], **options)


def run(*words, timeout=None, check=False, **options) -> subprocess.CompletedProcess:
    "Runs `python WORDS…` to its end and returns what it printed, as text."
    with python(*words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                **options) as process:
        try: said, errors = process.communicate(timeout=timeout)
        except BaseException:
            process.kill()
            raise
    done = subprocess.CompletedProcess(words, process.returncode, said, errors)
    if check: done.check_returncode()
    return done


def received(commands: socket.socket) -> tuple[socket.socket, dict, list[int]] | None:
    "An order: who waits for its end, what to do, and the three files to do it with."
    message, files, _, _ = socket.recv_fds(commands, 1, 4)
    if not message: return None
    line = socket.socket(fileno=files[0])
    with line.makefile() as text: return line, json.loads(text.readline()), files[1:]


def forks(commands: socket.socket) -> dict | None:
    "Forks by order; returns the order in the process that is forked, None when all is over."
    with selectors.DefaultSelector() as waiting:
        waiting.register(commands, selectors.EVENT_READ)
        while True:
            for key, _ in waiting.select():
                if key.fileobj is not commands:  # a process has ended
                    waiting.unregister(key.fileobj)
                    os.close(key.fd)
                    number, line = key.data
                    try: line.sendall(word(os.waitpid(number, 0)[1]))
                    except BrokenPipeError: continue  # nobody waits any more
                    finally: line.close()
                    continue
                found = received(commands)
                if found is None: return None
                line, order, files = found
                number = os.fork()
                if number == 0:
                    for usual, file in enumerate(files): os.dup2(file, usual)
                    return order
                for file in files: os.close(file)
                line.sendall(word(number))
                waiting.register(os.pidfd_open(number), selectors.EVENT_READ, (number, line))


def become(words: list[str], folder: str, environment: dict[str, str]) -> None:
    "Be `python WORDS…`."
    os.closerange(3, 256)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    for name, mode, file in (("stdin", "r", 0), ("stdout", "w", 1), ("stderr", "w", 2)):
        setattr(sys, name, open(file, mode, 1 if file == 2 else -1, closefd=False))  # noqa: SIM115
    signal.signal(signal.SIGINT, signal.default_int_handler)
    threads = environment.get("OMP_NUM_THREADS") or os.cpu_count()
    sys.modules["torch"].set_num_threads(int(threads))
    kind, *words = words if words[0] in ("-c", "-m") else ("", *words)
    sys.argv = [kind or words[0], *words[1:]]
    sys.path.insert(0, "" if kind else os.path.dirname(os.path.abspath(words[0])))
    if kind == "-m": runpy.run_module(words[0], run_name="__main__", alter_sys=True)
    elif kind == "-c":
        program = sys.modules["__main__"] = ModuleType("__main__")
        exec(compile(words[0], "<string>", "exec"), program.__dict__)
    else: runpy.run_path(words[0], run_name="__main__")


if __name__ == "__main__":
    del sys.path[0]  # this folder
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends who gives the orders
    for name in COMMON: import_module(name)
    order = forks(socket.socket(fileno=int(sys.argv[1])))
    if order: become(**order)
