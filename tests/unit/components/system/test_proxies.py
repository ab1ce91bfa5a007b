"""Which proxy leads to an address."""

import pytest

from components.errors import BadInput
from components.system.proxies import Proxy, proxy_for

NAMES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
PLAIN = Proxy("http://proxy.example:3128", {})


def set_variables(variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("variables", "url", "proxy"),
    [
        ({}, "https://kfp.example", None),
        ({"HTTPS_PROXY": "http://proxy.example:3128"}, "https://kfp.example/pipeline", PLAIN),
        ({"https_proxy": "proxy.example:3128"}, "https://kfp.example", PLAIN),
        ({"HTTP_PROXY": "http://proxy.example:3128"}, "https://kfp.example", None),
        ({"ALL_PROXY": "http://proxy.example:3128"}, "http://kfp.example", PLAIN),
        ({"HTTPS_PROXY": ""}, "https://kfp.example", None),
        ({"HTTPS_PROXY": "http://proxy.example:3128", "NO_PROXY": ".svc, kfp.example"}, "https://kfp.example:8443", None),
        ({"HTTPS_PROXY": "http://proxy.example:3128", "no_proxy": "*"}, "https://kfp.example", None),
        ({"HTTPS_PROXY": "http://proxy.example:3128", "NO_PROXY": "other.example"}, "https://kfp.example", PLAIN),
        ({"HTTPS_PROXY": "http://proxy.example:3128", "NO_PROXY": ".svc,10.0.0.0/8"}, "https://10.1.2.3:8443", None),
        ({"HTTPS_PROXY": "http://proxy.example:3128", "NO_PROXY": ".svc,10.0.0.0/8"}, "https://11.1.2.3", PLAIN),
        ({"HTTP_PROXY": "http://proxy.example:3128"}, "http://127.0.0.1:8888", None),
        ({"HTTP_PROXY": "http://proxy.example:3128"}, "http://localhost:8888", None),
        ({"HTTP_PROXY": "http://proxy.example:3128"}, "http://[::1]:8888", None),
        ({"HTTPS_PROXY": " http://proxy.example:3128\n"}, "https://kfp.example", PLAIN),
        (
            {"HTTPS_PROXY": "ann:%C5%82@[fd00::1]:3128"},
            "https://kfp.example",
            Proxy("http://[fd00::1]:3128", {"proxy-authorization": "Basic YW5uOsWC"}),
        ),
        (
            {"HTTPS_PROXY": "http://ann:p%40ss@proxy.example:3128"},
            "https://kfp.example",
            Proxy("http://proxy.example:3128", {"proxy-authorization": "Basic YW5uOnBAc3M="}),
        ),
    ],
)
def test_the_variables_mean_what_they_mean_to_other_clients(
    variables: dict[str, str], url: str, proxy: Proxy | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_variables(variables, monkeypatch)
    assert proxy_for(url) == proxy


def test_the_login_of_a_proxy_shows_nowhere() -> None:
    assert "secret" not in repr(Proxy("http://proxy.example", {"proxy-authorization": "secret"}))


@pytest.mark.parametrize(
    "address", ["socks5://ann:secret@proxy.example:1080", "http://ann:secret@", "http://ann:secret@[::1", "//proxy", "http://h:x"]
)
def test_a_proxy_that_cannot_be_used_is_bad_input_without_its_login(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    set_variables({"ALL_PROXY": address}, monkeypatch)
    with pytest.raises(BadInput, match="HTTPS_PROXY or ALL_PROXY cannot be used") as refused:
        proxy_for("https://kfp.example")
    assert "secret" not in refused.value.message


def test_a_client_that_does_not_read_all_proxy_is_not_refused_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    set_variables({"ALL_PROXY": "socks5h://proxy.example:1080"}, monkeypatch)
    assert proxy_for("https://kube.example", reads_all_proxy=False) is None
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example:3128")
    assert proxy_for("https://kube.example", reads_all_proxy=False) == Proxy("http://proxy.example:3128", {})
