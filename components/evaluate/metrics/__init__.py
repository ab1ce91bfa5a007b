"""The metrics of an evaluation: a file each, and one table.

To add a metric:
    1. Write `metrics/NAME.py` with `measure(inputs: MetricInputs) -> tuple[Value, ...]`: one `Value` per output, in the table's order.
       It is imported when it is needed, so it may import PyTorch and torch-fidelity.
    2. Add an entry to `METRICS` in `table.py`: outputs, features needed, and what it adds to the protocol. The configuration, the workers,
       the protocol's digest and the gate follow from it. Leave `default` out, so that existing protocols keep their digests.
    3. Test it in `tests/unit/components/evaluate/test_scores.py` and add a line to the table of metrics in docs/evaluation.md.
A metric with settings of its own also has fields in `components/evaluate/config.py` and in `settings.py`.
"""
