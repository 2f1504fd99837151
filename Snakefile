# The paper's grid: prepare -> train -> evaluate -> figures, each rule a notebook run by papermill.
#   make grid DATASET=ucf101 GIVEN="-p root /data/ucf101 -p lists /data/ucfTrainTestlist"
#   make grid DATASET=demo METHODS=supervised,videossl SEEDS=0,1 ARGS=--dry-run
#   make grid GRID=ucf101_6 GIVEN="-p root ..."        the cells that params/grids/ucf101_6.yaml declares
#   make grid DATASET=ucf101 GPUS=32 ARGS="--workflow-profile params/slurm"        on a SLURM cluster, from its login node
# An interrupted grid resumes; what is done is not repeated, and a failed cell does not stop the others.
import shlex
import sys

from videossl_lab.grid import Grid

grid = Grid.of(config)
cells, folder = grid.cells, grid.folder
run = f"{shlex.quote(sys.executable)} -m videossl_lab.execute"

if workflow.output_settings.dryrun:
    print(f"{len(cells)} cells of {grid.dataset}: about {grid.hours():.3g} hours of training, one after another,")
    print("at the rate that make bench measured (outputs/bench/bench.json, or else the published one)")


localrules: all


rule all:
    input: folder / "figures.done"


rule prepare:
    output: touch(folder / "prepared.done")
    log: folder / "data_prep.ipynb"
    resources: gpu=1, runtime="2d"
    params: words=grid.prepare
    shell: "{run} data_prep {log:q} {params.words}"


rule train:
    input: rules.prepare.output
    output: touch(folder / "train-{cell}.done")
    log: folder / "train-{cell}.ipynb"
    resources: gpu=1, runtime="4d"
    params: words=lambda wildcards: grid.train(wildcards.cell)
    retries: 0
    shell: "{run} train {log:q} {params.words}"


rule evaluate:
    input: rules.train.output
    output: touch(folder / "evaluate-{cell}.done")
    log: folder / "evaluate-{cell}.ipynb"
    resources: gpu=1, runtime="4h"
    params: words=lambda wildcards: grid.evaluate(wildcards.cell)
    shell: "{run} evaluate {log:q} {params.words}"


rule figures:
    input: expand(folder / "evaluate-{cell}.done", cell=cells)
    output: touch(folder / "figures.done")
    log: folder / "paper_figures.ipynb"
    resources: runtime="1h"
    params: words=grid.figures
    shell: "{run} paper_figures {log:q} {params.words}"


onerror:
    print("These cells failed; the notebook shows where. The same command tries them again:")
    for name, notebook, error in grid.failed():
        print(f"  {name:<40} {notebook}\n    {error}")
    if any((folder / f"evaluate-{name}.done").exists() for name in cells):  # the figures of what there is
        shell(f"{run} paper_figures {shlex.quote(str(folder / 'paper_figures.ipynb'))} {grid.figures}")
