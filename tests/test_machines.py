"""Machines that nobody here has: what is different about them is faked, as faithfully as it can be."""

import errno
import fcntl
import json
import multiprocessing
import os
import re
import subprocess
import sys
import warnings

import nbformat
import numpy as np
import pytest
import torch
from nbclient.exceptions import DeadKernelError
from support.helpers import NETWORKS, record, same, slow_after
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from videossl_core import (
    batches,
    devices,
    evaluation,
    models,
    params,
    precision,
    prepare,
    runs,
    training,
)
from videossl_core.data import files, pool
from videossl_core.paths import ROOT
from videossl_core.teacher import Classifier
from videossl_lab import execute


class AppleGPU(TorchDispatchMode):
    """This CPU as a device without float64: only what came from it by ``.cpu()`` may be of that type."""

    def __enter__(self):
        self.on_host = WeakIdKeyDictionary()

        def cpu(tensor):
            copy = tensor.clone()
            self.on_host[copy] = True
            return copy

        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(torch.Tensor, "cpu", cpu)
        return super().__enter__()

    def __exit__(self, *error):
        self.patch.undo()
        return super().__exit__(*error)

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        made = op(*args, **kwargs or {})
        for tensor in (t for t in tree_leaves(made) if isinstance(t, torch.Tensor)):
            if any(t in self.on_host for t in given):
                self.on_host[tensor] = True
            assert tensor in self.on_host or tensor.dtype != torch.float64, f"{op}: no float64 on this GPU"
        return made


def test_fake_gpu_refuses_float64():
    x = torch.ones(3)
    with AppleGPU():
        assert (x + 1).cpu().double().softmax(-1).sum() == 1
        for wrong in (
            x.double,
            lambda: x.sum(dtype=torch.float64),
            lambda: torch.zeros(2, dtype=torch.float64),
        ):
            with pytest.raises(AssertionError, match="no float64"):
                wrong()


@pytest.mark.parametrize("method", slow_after(3, NETWORKS))
def test_no_float64_on_the_device(tiny, method):
    """A training step, the evaluation, and a prediction of every clip."""
    p = tiny(method=method, steps=1, eval_every=1, tau=0, teacher_view="same")
    data = prepare.prepare(p)
    with AppleGPU():
        trainer = training.make_trainer(p, data)
        rows = list(trainer)
        what = trainer.network, p, data.rows("test"), data.classes, data.store, "cpu"
        made = evaluation.predict(*what, every_clip=True)
    assert [row.get("subset") for row in rows] == [None, "test", "unlabelled"]
    assert made.every_clip.dtype == made.video_probs.dtype == np.float64
    assert np.allclose(made.every_clip.sum(1), 1, rtol=0, atol=1e-12)


@pytest.mark.slow
def test_no_float64_before_a_run(tiny):
    """The teacher and the check of half precision."""
    p = tiny()
    with AppleGPU():
        frames = torch.zeros(1, 3, 224, 224, dtype=torch.uint8)
        softmax, _ = Classifier(p.teacher)(frames)  # built here, not for all tests
        checked = precision.check(training.build_network(p, 3), (8, 3, 8, 48, 48), "bf16", "cpu")
    assert softmax.dtype == torch.float32
    assert checked.dtype == "bf16"


def test_file_is_brought_to_the_disk_on_windows(tmp_path, monkeypatch):
    """There fsync takes only a file that may be written to."""

    def fsync(fd):
        if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "Bad file descriptor")

    monkeypatch.setattr(os, "fsync", fsync)
    files.write_text(tmp_path / "a.txt", "text")
    assert (tmp_path / "a.txt").read_text() == "text"


@pytest.fixture
def spawn_alone(monkeypatch):
    """Python as it is on Windows: it knows neither fork nor forkserver."""
    for method in ("fork", "forkserver"):
        monkeypatch.delitem(multiprocessing.context._concrete_contexts, method)
    for module in (multiprocessing, torch.multiprocessing):
        monkeypatch.setattr(module, "get_all_start_methods", lambda: ["spawn"])
    with pytest.raises(ValueError, match="cannot find context for 'forkserver'"):
        multiprocessing.get_context("forkserver")


@pytest.mark.slow
def test_worker_processes_without_forkserver(tiny, spawn_alone):
    assert sorted(pool.map_unordered(abs, [-1, -2], workers=1)) == [(-2, 2), (-1, 1)]
    p = tiny(num_workers=1, batch_size=2)
    store = prepare.prepare(p).store
    clips = batches.EvalClips(p, list(store.table.index[:1]), store)
    (pixels, *_), *_ = batches.loader(clips, p, "cpu")
    assert torch.equal(pixels, clips[0][0])


@pytest.mark.parametrize(("bound", "slurm"), slow_after(1, [(True, ""), (False, "1"), (True, "8")]))
def test_one_process_per_core_of_the_job(bound, slurm):
    """A job that may use one core, on a node of 64: by its affinity, or by what SLURM gave it."""
    script = f"""
import os
os.cpu_count = lambda: 64
if {bound}:
    os.sched_setaffinity(0, list(os.sched_getaffinity(0))[:1])
else:
    os.sched_getaffinity = lambda pid: range(64)

from videossl_core.data import pool
def started(workers, context):
    print(workers)
    raise SystemExit

pool.ProcessPool = started
list(pool.map_unordered(abs, list(range(100))))
"""
    env = {name: value for name, value in os.environ.items() if name != "SLURM_CPUS_PER_TASK"}
    env |= {"SLURM_CPUS_PER_TASK": slurm} if slurm else {}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=env)
    assert done.stdout == "1\n", done.stderr


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_loaders_take_no_more_than_the_job_has(tiny, monkeypatch):
    p = tiny(batch_size=2)
    store = prepare.prepare(p).store
    clips = batches.EvalClips(p, list(store.table.index[:3]), store)
    assert len(clips) > 2
    monkeypatch.setattr(pool, "cores", lambda: 3)
    assert batches.loader(clips, p, "mps").num_workers == 2
    monkeypatch.setattr(pool, "cores", lambda: 64)
    assert batches.loader(clips, p, "mps").num_workers == len(clips)  # not one without work


@pytest.mark.slow
def test_loader_processes_find_pytorch_imported(tmp_path):
    """Although other processes, which render and decode, start first. Each on its own would take seconds."""
    script = f"""
import sys

def imported(_):
    return "torch" in sys.modules, "videossl_core.batches" in sys.modules

if __name__ == "__main__":
    from support.helpers import TINY
    from videossl_core import params, prepare
    from videossl_core.data import pool
    given = TINY | {{"outputs": {str(tmp_path)!r}, "num_workers": 2, "prep_workers": 1}}
    prepare.prepare(params.load(**given))
    print(dict(sorted(pool.map_unordered(imported, [0, 1], workers=2))))
"""
    (tmp_path / "script.py").write_text(script)
    env = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    command = [sys.executable, str(tmp_path / "script.py")]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert "{0: (True, True), 1: (True, True)}" in done.stdout, done.stderr


@pytest.fixture
def notebook(tmp_path, monkeypatch):
    """``make(script)``: a notebook, and a kernel that this shell script starts by ``exec "$@"``."""
    cell = nbformat.v4.new_code_cell("print(6 * 7)")
    kernel = {"kernelspec": {"name": "python3", "display_name": "", "language": "python"}}
    (tmp_path / "notebooks").mkdir()
    nbformat.write(nbformat.v4.new_notebook(cells=[cell], metadata=kernel), tmp_path / "notebooks/a.ipynb")
    monkeypatch.setattr(execute, "ROOT", tmp_path)
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)

    def make(script):
        spec = tmp_path / "kernels/python3/kernel.json"
        spec.parent.mkdir(parents=True)
        python = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        argv = ["sh", "-c", f"echo >> starts; {script}", "sh", *python]
        spec.write_text(json.dumps({"argv": argv, "display_name": "", "language": "python"}))

    return make


def starts(folder):
    return len((folder / "starts").read_text())


@pytest.mark.slow
def test_kernel_that_fails_at_first_is_started_again(notebook, tmp_path, capsys):
    notebook('[ $(wc -l < starts) = 2 ] || exit 1; exec "$@"')
    execute.execute("a", tmp_path / "done.ipynb")
    assert "42" in (tmp_path / "done.ipynb").read_text()
    assert starts(tmp_path) == 2
    assert "no kernel started (Kernel died" in capsys.readouterr().out


@pytest.mark.slow
def test_slow_kernel_is_waited_for(notebook, tmp_path, monkeypatch):
    assert execute.START_SECONDS > 60  # papermill's own limit is too short on slow file systems
    monkeypatch.setattr(execute, "START_SECONDS", 1)
    notebook("exec sleep 600")
    with pytest.raises(RuntimeError, match=r"done.ipynb: no kernel started, twice .*respond in 1 seconds"):
        execute.execute("a", tmp_path / "done.ipynb")
    assert starts(tmp_path) == 2


@pytest.mark.slow
def test_kernel_that_dies_at_work_is_not_started_again(notebook, tmp_path):
    """What the cells did is not done twice."""
    notebook('exec "$@"')
    path = tmp_path / "notebooks/a.ipynb"
    path.write_text(path.read_text().replace("print(6 * 7)", "import os; os._exit(1)"))
    with pytest.raises(DeadKernelError):
        execute.execute("a", tmp_path / "done.ipynb")
    assert starts(tmp_path) == 1


FEED = """
import sys
from support.helpers import TINY
from videossl_core import batches, params, prepare, training

if __name__ == "__main__":
    p = params.load(**TINY | {"batch_size": 8, "num_workers": 1, "outputs": sys.argv[1]})
    data = prepare.prepare(p)
    test = batches.EvalClips(p, list(data.rows("test").video), data.store)
    for made in (training.Trainer(p, data).batches, test):
        try:
            list(batches.prefetch(batches.loader(made, p, "cpu"), "cpu"))
        except RuntimeError as error:
            print(error)
"""


@pytest.mark.slow
def test_little_shared_memory(prepared, tmp_path):
    """As in a container: less than one batch of 110 kB. PyTorch alone waits for ever for the batch."""
    (tmp_path / "feed.py").write_text(FEED)
    mount = "mount -t tmpfs -o size=64k tmpfs /dev/shm"
    alone = ["unshare", "--mount", "--user", "--map-root-user", "sh", "-c"]
    if subprocess.run([*alone, mount]).returncode:
        pytest.skip("this machine does not let users mount")
    words = [*alone, f'{mount} && exec "$@"', "sh", sys.executable, tmp_path / "feed.py", prepared]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(words, capture_output=True, text=True, timeout=100, env=env)
    assert done.stdout.count("No space left on device") >= 2, done.stderr
    assert done.stdout.count("num_workers = 0 needs no shared memory") == 2


def test_message_where_a_loader_dies_of_it():
    """Where the system says so by a bus error, PyTorch gives this text."""

    def killed(text):
        yield 1
        raise RuntimeError(text)

    bus = (
        "worker (pid 7) is killed by signal: Bus error. It is possible that workers are out of shared memory."
    )
    with pytest.raises(RuntimeError, match=r"(?s)pid 7.* Bus error.*num_workers = 0.*--shm-size"):
        list(batches.prefetch(killed(bus), "cpu"))
    with pytest.raises(RuntimeError, match=r"^something else$"):
        list(batches.prefetch(killed("something else"), "cpu"))


CUDA_FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has ...")
CUBLAS_FULL = RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
SMALLER = r"batch_size = 4: the device has too little free memory.*the last checkpoint stays"


@pytest.mark.slow
@pytest.mark.parametrize("error", [CUDA_FULL, CUBLAS_FULL], ids=["PyTorch", "cuBLAS"])
@pytest.mark.parametrize("evaluates", [False, True], ids=["training", "evaluating"])
def test_full_gpu_names_batch_size(tiny, tmp_path, monkeypatch, error, evaluates):
    """Nothing is lost that a checkpoint holds, and the same command resumes once there is memory."""
    p, forward = tiny(method="sd", checkpoint_minutes=0), models.VideoNet.forward

    def full(network, clips):
        if network.training != evaluates and trainer.step_number == 2:
            raise error
        return forward(network, clips)

    monkeypatch.setattr(models.VideoNet, "forward", full)
    with pytest.raises(MemoryError, match=SMALLER) as raised, runs.open(p) as run:  # noqa: PT012
        trainer = training.make_trainer(p, prepare.prepare(p))
        list(run.record(trainer))
    assert raised.value.__cause__ is error
    assert runs.Run(p.run_dir).read_checkpoint()["step"] == 2
    monkeypatch.undo()
    resumed = training.train(p)
    assert resumed.read_provenance()["resumed"][0]["step"] == 2
    assert same(record(resumed), record(training.train(tiny(method="sd", outputs=tmp_path / "whole"))))


def test_full_gpu_before_the_first_step(tiny, monkeypatch):
    def full(*_):
        raise CUDA_FULL

    monkeypatch.setattr(precision, "choose", full)
    p = tiny()
    with pytest.raises(MemoryError, match=SMALLER):
        training.make_trainer(p, prepare.prepare(p))


def test_other_errors_of_a_gpu_stay_what_they_are(tiny):
    lost = RuntimeError("CUDA error: unspecified launch failure")
    with pytest.raises(RuntimeError) as raised, devices.enough_memory(tiny()):
        raise lost
    assert raised.value is lost


TOO_OLD = "The NVIDIA driver on your system is too old (found version 11040)."


@pytest.fixture
def old_driver(monkeypatch):
    """PyTorch finds a GPU that it cannot use, and says why once."""
    reasons = [TOO_OLD]

    def is_available():
        if reasons:
            warnings.warn(reasons.pop(), stacklevel=2)
        return False

    monkeypatch.setattr(torch.cuda, "is_available", is_available)
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
    devices._cuda.cache_clear()
    yield
    devices._cuda.cache_clear()


def test_unusable_gpu_is_named_before_the_work(tiny, tmp_path, old_driver, monkeypatch):
    monkeypatch.setattr(prepare, "FrameStore", None)  # whose work takes hours
    index = prepare.datasets.read_index(tiny())
    for device in ("cuda", "cuda:1"):
        with pytest.raises(
            params.ParameterError, match=rf"device = '{device}': PyTorch cannot.*{TOO_OLD[:40]}"
        ):
            prepare.decode_index(tiny(device=device), index)
    with pytest.warns(UserWarning, match=r"^NO GPU: .*the CPU will do all work. The NVIDIA driver") as said:
        assert devices.device(tiny()) == "cpu"
    assert len(said) == 1
    assert devices.device(tiny(device="cpu")) == "cpu"


@pytest.mark.slow
def test_gpu_tests_without_a_gpu():
    """One sentence, and no failure."""
    command = [sys.executable, "-m", "pytest", "tests/gpu"]
    env = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=env)
    assert done.returncode == 0
    assert done.stdout == ""
    assert re.fullmatch(r"Exit: no GPU that PyTorch can use here: nothing was tested\..*\n", done.stderr)


def test_no_gpu_is_no_news(tiny, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
    devices._cuda.cache_clear()
    assert devices.device(tiny()) == "cpu"
    with pytest.raises(params.ParameterError, match="device = 'cuda': PyTorch cannot use a GPU here"):
        devices.device(tiny(device="cuda"))
    devices._cuda.cache_clear()


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_file_system_without_locks(tmp_path, monkeypatch, code):
    def flock(fd, operation):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", flock)
    for lock in (files.locked(tmp_path / "shared"), execute.one_gpu(tmp_path / "shared")):
        monkeypatch.setattr(execute, "gpus", lambda: ["0", "1"])
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        with pytest.raises(
            OSError, match=r"no locks .*take outputs elsewhere.* -o flock.*/shared/"
        ) as raised:
            lock.__enter__()
        assert raised.value.errno == code


@pytest.mark.filterwarnings("ignore:flock not supported")
def test_file_system_without_flock(tmp_path, monkeypatch):
    """ENOSYS: filelock's own file stands for the lock, or the same error says what to do."""

    def flock(fd, operation):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", flock)
    with files.locked(tmp_path), pytest.raises(files.Busy), files.locked(tmp_path, wait=False):
        pass
    with files.locked(tmp_path, wait=False):
        pass
