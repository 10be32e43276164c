"""Kernels that start at once.

One process imports what every notebook imports, and forks for each of them.

A hundred notebooks would import PyTorch and matplotlib a hundred times, which takes longer than
most of them run. A forked kernel is as fresh as any other: nothing has run in it but imports. Linux
only; elsewhere processes with graphics cannot be forked safely, and kernels start as they do.

Started as a program, this file is the process that forks: it reads orders and answers with process
numbers.
"""

import gc
import json
import os
import signal
import subprocess
import sys
import threading
import time
from importlib import import_module
from importlib.metadata import EntryPoint

from jupyter_client.provisioning import KernelProvisionerFactory, LocalProvisioner

# What is imported for all. Nothing that looks for its notebook when it is imported, as matplotlib's
# inline backend and ipywidgets do.
COMMON = ("matplotlib.pyplot", "matplotlib.backends.backend_svg",
          "torch._dynamo",                                   # by every optimizer, at its first call
          "metalit", "pytest",
          "ipykernel.debugger", "psutil", "IPython.core.completerlib", "IPython.core.pylabtools",
          "IPython.extensions.storemagic")                   # by every kernel


class Child:
    """A forked kernel, with what jupyter_client asks of a `subprocess.Popen`."""

    stdin = stdout = stderr = None

    def __init__(self, pid):
        self.pid = pid

    def send_signal(self, number):
        os.kill(self.pid, number)

    def kill(self):
        self.send_signal(signal.SIGKILL)

    def terminate(self):
        self.send_signal(signal.SIGTERM)

    def poll(self):
        """None while it lives. How it ended is not known, for it is no child of this process."""
        try:
            self.send_signal(0)
        except ProcessLookupError:
            return 0

    def wait(self):
        while self.poll() is None:
            time.sleep(0.01)
        return 0


class Nursery:
    """The process that forks, while the block lasts; kernels of jupyter_client come from it."""

    def __init__(self):
        self.lock = threading.Lock()

    def __enter__(self):
        # matplotlib asks when it is imported; the same that a kernel would set.
        environment = os.environ | {"MPLBACKEND": "module://matplotlib_inline.backend_inline",
                                    "PYDEVD_DISABLE_FILE_VALIDATION": "1"}  # no word of debugging
        self.process = subprocess.Popen([sys.executable, __file__], env=environment, text=True,
                                        bufsize=1, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        factory = KernelProvisionerFactory.instance()
        self.usual = factory.default_provisioner_name
        factory.provisioners["nursery"] = EntryPoint("nursery", f"{__name__}:Forked",
                                                     factory.GROUP_NAME)
        factory.default_provisioner_name = "nursery"
        Forked.nursery = self
        return self

    def __exit__(self, *error):
        KernelProvisionerFactory.instance().default_provisioner_name = self.usual
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()

    def fork(self, **order):
        """A new process that becomes a kernel."""
        with self.lock:
            self.process.stdin.write(json.dumps(order) + "\n")
            answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError("the process that forks kernels has ended: what it printed stands "
                               "above")
        return Child(int(answer))


class Forked(LocalProvisioner):
    """A kernel on this machine that is forked instead of started."""

    nursery = None

    async def launch_kernel(self, cmd, **options):
        arguments = cmd[cmd.index("ipykernel_launcher") + 1 :]
        self.process = self.nursery.fork(arguments=arguments, folder=options["cwd"],
                                         environment=options["env"])
        self.pid = self.pgid = self.process.pid
        return self.connection_info


def become(kernelapp, order):
    """Be a kernel until its end."""
    os.setsid()  # signals to it do not reach the others
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    os.chdir(order["folder"])
    os.environ.clear()
    os.environ.update(order["environment"])
    # It ends when the process that forked it does.
    kernelapp.launch_new_instance([*order["arguments"],
                                   f"--IPKernelApp.parent_handle={os.getppid()}"])


def main():
    del sys.path[0]  # this folder
    for name in COMMON: import_module(name)
    from ipykernel import kernelapp

    gc.collect()
    gc.freeze()  # no kernel looks through what was imported, at each of its collections
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that have ended
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever gives the orders ends it
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            become(kernelapp, json.loads(line))
            os._exit(0)
        print(pid, flush=True)


if __name__ == "__main__":
    main()
