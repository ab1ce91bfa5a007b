"""Sweeps: search over settings by successive halving, each trial an ordinary training that is continued from rung to rung.

From the top layer to the bottom one:
    coordinator                               the loop: take the next action, record what came of it
    local_runner, cluster_runner              run a trial on this machine or on Kubeflow Pipelines
    mlflow_log, page, table                   show a sweep in MLflow, as a page, and in the terminal
    measured                                  a trial's score that storage has already
    journal                                   the records in object storage
    halving, ranking                          what to do next: a pure function of the records
    proposals, optuna_samplers                the settings of the next trial: a pure function of the records
    records                                   what is recorded, and the state that records add up to
    sweep_file, space, counters               the file, the settings that it varies, its random numbers
"""
