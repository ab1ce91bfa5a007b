"""The pipeline's steps and the packages that they share.

A folder with a `component.py` is a step; `pipeline/steps.py` lists the steps in their order. No package imports a step. The component of
`preflight/` is in `pipeline/`, because it resolves the configuration of all steps.

All others are shared, from the top layer to the bottom one; each may import the layers below it (`make contracts`):
    weights     resolve a source to files, post-hoc EMA, the published checkpoint       (above the steps)
    serving     package a checkpoint as an MLflow model, test it, register it, KServe   (below the steps)
    registry    model registry client, tags of a version, promotion log, webhook
    runtime     what a step and a rank run in: context, events, redaction, launcher and why ranks failed
    stores      layout of the object store (where everything lies), checkpoints, checksums, quarantine, cache of packed datasets
    tracking    MLflow tracking client, tags, logged models, local journal, its delivery and archive
    features    networks that features are taken from, their weights, and distances between sets of features
    storage     object storage client          kube        Kubernetes client
    manifests  resources                       system      processes and their ends, private folders, locks, retries, OS errors
    settings (a run's environment), process_settings (of one process), command_settings (of the command line)
    validation  problems of a configuration, one a line
    errors      deployment (names that images and Kubernetes manifests share)           reports (HTML, image grids)
    address     parse the address of a server that a person wrote                       store_keys (addresses as they are stored)
    environment the table of environment variables, with library_variables and environment_variable
"""
