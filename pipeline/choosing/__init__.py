"""`celebdit evaluate`: score checkpoints and EMA widths of one training on few images, and register the best one.

candidates    which weights of the training there are, and which were asked for
settings      the configuration that the training's pipeline run was started with
scores        measure the candidates under one protocol, and compare each with the best
registration  full evaluation, gate and registration of one candidate, by the code of the pipeline's steps
mlflow_log    the scores as a child of the training's run
"""
