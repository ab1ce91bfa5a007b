"""The variables of Services are removed, those of people are kept."""

from components.system.service_links import drop_service_links


def test_addresses_of_services_are_dropped_and_settings_kept() -> None:
    environ = {
        "MLFLOW_PORT": "tcp://10.96.0.7:5000",
        "MLFLOW_PORT_5000_TCP": "tcp://10.96.0.7:5000",
        "POSTGRES_PORT": "tcp://10.96.0.8:5432",
        "S3_PORT_9000_TCP": "tcp://10.96.0.9:9000",
        "MLFLOW_TRACKING_URI": "http://mlflow.celebdit:5000",
        "MLFLOW_SERVICE_HOST": "10.96.0.7",
        "OTHER_PORT": "tcp://10.96.0.1:1",
    }
    dropped = drop_service_links(environ)
    assert dropped == ["MLFLOW_PORT", "MLFLOW_PORT_5000_TCP", "POSTGRES_PORT", "S3_PORT_9000_TCP"]
    assert sorted(environ) == ["MLFLOW_SERVICE_HOST", "MLFLOW_TRACKING_URI", "OTHER_PORT"]
